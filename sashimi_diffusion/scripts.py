"""The console scripts of pyproject.toml, which start commands by the names of their modules.

Loading torch and diffusers takes seconds. An interruption during this time is one line, as it is later.
"""

import os
import signal
import sys
from importlib import import_module

from sashimi_diffusion.terminal import say


def start(module: str) -> int:
    """Import the module of a command, run its ``main`` and return the exit code."""
    usual = signal.getsignal(signal.SIGINT)
    if usual is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupted)
    try:
        main = import_module(module).main
    finally:
        signal.signal(signal.SIGINT, usual)
    return main()


def _interrupted(*_: object) -> None:
    """End the process. A KeyboardInterrupt in the middle of an import can become an error of another type."""
    say("interrupted", sys.stderr)
    sys.stderr.flush()
    os._exit(130)


def convert() -> int:
    """Run ``sashimi-convert``."""
    return start("sashimi_evaluation.commands.convert")


def demo() -> int:
    """Run ``sashimi-demo``."""
    return start("sashimi_diffusion.commands.demo")


def evaluate() -> int:
    """Run ``sashimi-evaluate``."""
    return start("sashimi_evaluation.commands.evaluate")


def info() -> int:
    """Run ``sashimi-info``."""
    return start("sashimi_diffusion.commands.info")


def push() -> int:
    """Run ``sashimi-push``."""
    return start("sashimi_diffusion.commands.push")


def sample() -> int:
    """Run ``sashimi-sample``."""
    return start("sashimi_diffusion.commands.sample")


def train() -> int:
    """Run ``sashimi-train``."""
    return start("sashimi_evaluation.commands.train")
