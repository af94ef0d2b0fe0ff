"""Shared parts of all commands: help that shows defaults, errors in one line, exit codes, the device."""

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from sashimi_diffusion.errors import UserError


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help that shows every default except None, which the help text of the argument explains."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser that raises ``UserError``, which :func:`run` prints in one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=HelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Raise a UserError that names the help option."""
        raise UserError(f"{message} (see {self.prog} --help)")


def run(command: Callable[[], None]) -> int:
    """Run a command and print a ``UserError`` as one line on stderr, without a traceback.

    Returns:
        The exit code: 0, 2 after a ``UserError``, 130 after an interrupt.
    """
    try:
        command()
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def select_device(name: str) -> torch.device:
    """Return the device called ``name``; ``auto`` is CUDA (or ROCm) if available, otherwise the CPU.

    ``auto`` never selects Apple's GPUs: they have no float64, which the discretization of state spaces needs.

    Raises:
        UserError: torch has no such device, or it is not available.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0][:200]
        raise UserError(f"the device {name!r} cannot be used ({reason}): try --device auto") from error
    return device
