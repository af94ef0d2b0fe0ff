"""What a run reports: lines and a progress bar on the terminal, metrics.jsonl and the trackers of Accelerate."""

import math
import sys
from collections.abc import Mapping
from pathlib import Path

from accelerate import Accelerator
from tqdm.auto import tqdm

from sashimi_diffusion.terminal import say
from sashimi_diffusion.training.config import TrainingConfig
from sashimi_diffusion.training.run_folder import METRICS, MetricsFile, writing_to


class Log:
    """The reports of a run. All processes call its methods; the main process prints and writes metrics.jsonl.

    Args:
        accelerator: of the run.
        run: the run folder.
    """

    def __init__(self, accelerator: Accelerator, run: Path) -> None:
        self.accelerator, self.run = accelerator, run
        self.metrics: MetricsFile | None = None
        """The open file on the main process; None before :meth:`open`."""

    def open(self, step: int) -> None:
        """Open metrics.jsonl, which keeps its lines up to ``step``. Only the main process calls this method."""
        self.metrics = MetricsFile(self.run / METRICS, step)

    def close(self) -> None:
        """Close metrics.jsonl."""
        if self.metrics is not None:
            self.metrics.close()

    def print(self, text: str) -> None:
        """Print a line, above the progress bar if there is one."""
        if self.accelerator.is_main_process:
            say(text)

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Write a line of metrics.jsonl and send its finite numbers to the trackers."""
        if self.metrics is not None:
            with writing_to(self.run, METRICS):
                self.metrics.write({"step": step, **values})
        numbers = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
        self.accelerator.log(numbers, step=step)

    def write_and_print(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write metrics, if there are any, and print them."""
        if metrics:
            self.write(step, metrics)
            words = ", ".join(f"{name.replace('_', ' ')} {value:.5f}" for name, value in metrics.items())
            self.print(f"step {step}: {words}")


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
