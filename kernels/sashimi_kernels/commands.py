"""What the commands of this package share: errors are one line on stderr and exit code 2, never a traceback."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn


class UnusableError(Exception):
    """A command cannot do what it was asked; the message is one line."""


class Parser(argparse.ArgumentParser):
    """An argument parser that shows ``description`` as it is and whose errors are ``UnusableError``."""

    def __init__(self, description: str) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise UnusableError(f"{message} (see --help)")


def positive(text: str) -> int:
    """The type of options that count something."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {value}")
    return value


def run(command: Callable[[], int]) -> int:
    """The exit code of ``command``, or 2 after an ``UnusableError``."""
    try:
        return command()
    except UnusableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
