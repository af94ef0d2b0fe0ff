"""What all commands share: help that shows the defaults, one-line errors, exit codes."""

import argparse
import contextlib
import errno
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import torch

from sashimi_diffusion.errors import UserError


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows every default but ``None``, whose meaning the help text explains, and leaves examples as they are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are ``UserError``s, for ``run`` to print in one line."""

    def __init__(self, **options: object) -> None:
        super().__init__(formatter_class=HelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def run(command: Callable[[], None]) -> int:
    """Run a command; what the user can change is told as one line on stderr, never as a traceback.

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


@contextlib.contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Turns what the operating system says about a full, read-only or absent place into a ``UserError``."""
    try:
        yield
    except OSError as error:
        advice = (
            "free some space or choose another place"
            if error.errno in (errno.ENOSPC, errno.EDQUOT)
            else ("choose another place")
        )
        raise UserError(f"cannot write to {path} ({error.strerror or error}): {advice}") from error


def select_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is CUDA (or ROCm), else the CPU.

    Apple's GPUs have no float64, in which state spaces are discretized, so they are never chosen by themselves.

    Raises:
        UserError: torch does not know it, or it is not there.
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
