"""What a run reports: lines on the terminal, metrics.jsonl and the trackers of Accelerate."""

import math
from collections.abc import Mapping
from pathlib import Path

from accelerate import Accelerator

from sashimi_diffusion.training.progress import print_line
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
        """Print a line."""
        if self.accelerator.is_main_process:
            print_line(text)

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
