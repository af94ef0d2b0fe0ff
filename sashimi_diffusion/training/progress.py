"""What a run shows: a progress bar on stderr, and lines on stdout. Neither ends the run if nobody reads it."""

import sys
from typing import Any, TextIO

from tqdm.auto import tqdm

from sashimi_diffusion.terminal import discard, say
from sashimi_diffusion.training.config import TrainingConfig


def print_line(text: str) -> None:
    """Print a line on stdout, above the progress bar if there is one."""
    with tqdm.external_write_mode():
        say(text)


def close_bars() -> None:
    """Close all progress bars that an error has left open, so that the next line begins at the line's beginning."""
    for bar in list(getattr(tqdm, "_instances", ())):  # tqdm has no public list of them
        bar.close()


class ProgressBar:
    """The progress bar of a run, a context manager: at the end of the block the cursor is in an empty line.

    Args:
        training: gives the end of the run. With ``max_minutes``, the number of steps is an estimate.
        step: optimizer steps done.
        shown: whether there is a bar.
    """

    def __init__(self, training: TrainingConfig, step: int, shown: bool) -> None:
        self._limited = shown and training.max_minutes is not None
        self._bar = tqdm(
            total=training.steps,
            initial=step,
            unit="step",
            disable=not shown,
            mininterval=0.5 if sys.stderr.isatty() else 30,  # few lines in a log file
            file=_Unbreakable(sys.stderr),
        )

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show_loss(self, loss: float) -> None:
        """Show a loss at the next refresh."""
        self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)

    def advance(self, progress: float) -> None:
        """Count a step; ``progress`` is the completed share of the run."""
        self._bar.update()
        if self._limited and progress > 0:
            self._bar.total = max(self._bar.n, round(self._bar.n / progress))


class _Unbreakable:
    """A stream whose write errors discard what is written from then on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        try:
            self._stream.write(text)
        except (OSError, ValueError):
            discard(self._stream)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            discard(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __eq__(self, other: object) -> bool:  # tqdm looks for the bars that share a terminal with a line
        return other is self or other is self._stream

    __hash__ = None  # type: ignore[assignment]
