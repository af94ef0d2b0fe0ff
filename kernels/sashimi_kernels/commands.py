"""Argument parsing and errors of the commands: an error is one line on stderr and exit code 2, without a traceback."""

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn


class UnusableError(Exception):
    """An error of usage or environment that ends a command. The message is one line."""


class Parser(argparse.ArgumentParser):
    """An argument parser that shows ``description`` unchanged and raises ``UnusableError``."""

    def __init__(self, description: str) -> None:
        super().__init__(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise UnusableError(f"{message} (see --help)")


def positive(text: str) -> int:
    """Convert an option to a positive integer."""
    try:
        value = int(text)
    except ValueError as error:  # the message of argparse for it has the name of this function
        raise argparse.ArgumentTypeError(f"expected a whole number, got {text[:40]!r}") from error
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {value}")
    return value


def run(command: Callable[[], int]) -> int:
    """Run ``command`` and return its exit code. Print an ``UnusableError`` and return 2."""
    try:
        return command()
    except UnusableError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
