"""Shared parts of all commands: help with defaults, errors in one line, exit codes, the choice of the device."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

from sashimi_diffusion.arguments import short_form
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.suggestions import nearest_name
from sashimi_diffusion.terminal import (
    close_progress_bars,
    first_line,
    one_line,
    printable,
    say,
    shortened,
    unfailing_output,
)

_LONGEST_LINE = 2000


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Help that shows every default except that of a flag, and None, which the help text of the argument explains."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        if isinstance(action.default, (list, tuple)):
            return f"{action.help} (default: {' '.join(map(str, action.default))})"
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """An argument parser that raises ``UserError``, which :func:`run` prints in one line."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=HelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Raise a UserError that names the help option, and the option that was probably meant."""
        _, _, unknown = message.partition("unrecognized arguments: ")
        option = unknown.partition(" ")[0].partition("=")[0]
        names = [name.removeprefix("--") for name in self._option_string_actions if name.startswith("--")]
        near = nearest_name(option.removeprefix("--"), names) if option.startswith("--") else None
        meant = "" if near is None else f", did you mean --{near}?"
        raise UserError(f"{shortened(printable(message), 500)}{meant} (see {self.prog} --help)")


def path_argument(text: str) -> Path:
    """Return the path of an option, for its ``type``; a text without characters is no path."""
    if not text:
        raise argparse.ArgumentTypeError("expected a path, got an empty text")
    return Path(text)


def positive(text: str) -> int:
    """Return the whole number of an option, for its ``type``; it must be at least 1."""
    value = whole_number(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {value}")
    return value


def positive_numbers(text: str) -> list[int]:
    """Return the whole numbers of an option, separated by commas, for its ``type``; each must be at least 1."""
    return [positive(part) for part in text.split(",")]


def whole_number(text: str) -> int:
    """Return the whole number of an option, for its ``type``."""
    # The message of argparse for a ValueError has the name of the function.
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected a whole number, got {short_form(text)}") from error


def run(command: Callable[[], int | None], prints: Callable[[BaseException], bool] = lambda error: True) -> int:
    """Run a command and print a ``UserError`` as one line on stderr, without a traceback.

    Printing never ends the command, and warnings are lines that begin with "warning:".

    Args:
        command: the command; it returns its exit code, and None is 0. It may raise ``KeyboardInterrupt`` with a text
            for the user.
        prints: returns whether this process prints an error. Of several processes that raise it, one does.

    Returns:
        The exit code: that of the command, that of a ``UserError``, or 130 after an interrupt.
    """
    show_warning = warnings.showwarning
    with unfailing_output():
        warnings.showwarning = _say_warning
        try:
            return command() or 0
        except FileNotFoundError as error:
            if _working_folder_exists():
                raise
            raised: BaseException = UserError("the working directory was removed: change to another one with cd")
            raised.__cause__ = error
        except (UserError, KeyboardInterrupt) as error:
            raised = error
        finally:
            warnings.showwarning = show_warning
        if isinstance(raised, UserError):
            text, code = f"error: {raised}", raised.exit_code
        else:
            text, code = str(raised) or "interrupted", 130
        close_progress_bars()
        if prints(raised):
            say(_one_line(text), sys.stderr)
        return code


def _working_folder_exists() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True


def _say_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    say(f"warning: {_one_line(message)}", sys.stderr)


def _one_line(text: object) -> str:
    return one_line(text, _LONGEST_LINE)


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
    except Exception as error:  # missing devices raise exceptions of different types
        raise UserError(
            f"the device {short_form(name)} cannot be used, try --device auto: {first_line(error)}"
        ) from error
    return device
