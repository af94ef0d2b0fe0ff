"""What a run reports: lines and a progress bar on the terminal, metrics.jsonl and the trackers."""

import math
import sys
from collections.abc import Mapping
from pathlib import Path

from accelerate import Accelerator
from tqdm.auto import tqdm

from sashimi_diffusion.terminal import say
from sashimi_diffusion.training.config import RunConfig, TrainingConfig, to_tree
from sashimi_diffusion.training.run_folder import METRICS, MetricsFile, writing_to
from sashimi_diffusion.training.trackers import Trackers, tracked_run

_DELAY = 3.0  # seconds before the bar of an evaluation


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
        self._trackers: Trackers | None = None

    def open(self, step: int) -> None:
        """Open metrics.jsonl, which keeps its lines up to ``step``. Only the main process calls this method."""
        self.metrics = MetricsFile(self.run / METRICS, step)

    def start_trackers(self, names: list[str], config: RunConfig, step: int, resume: bool) -> None:
        """Start the trackers of a run, after :meth:`open`. Only the main process calls this method.

        Args:
            names: the installed trackers that the run uses.
            config: configuration of the run.
            step: optimizer steps done.
            resume: whether the run may have been tracked before.

        Raises:
            UserError: a tracker cannot be started.
        """
        run, new = tracked_run(self.run, config.tracking, resume)
        tracked = 0 if self.metrics is None else self.metrics.removed_step
        self._trackers = Trackers(names, self.run, run, new, to_tree(config), step, tracked)
        if self._trackers.keep_later_values:
            self.print(
                f"{', '.join(self._trackers.keep_later_values)}: the values up to step {tracked} are those of the run "
                "before it was resumed; set tracking.run to track this one on its own"
            )

    def close(self) -> None:
        """Close metrics.jsonl and end the trackers."""
        if self.metrics is not None:
            self.metrics.close()
        if self._trackers is not None:
            self._trackers.close()
            self._trackers = None

    def print(self, text: str) -> None:
        """Print a line, above the progress bar if there is one."""
        if self.accelerator.is_main_process:
            say(text)

    def write(self, step: int, values: Mapping[str, float | None]) -> None:
        """Write a line of metrics.jsonl and send its finite numbers to the trackers."""
        if self.metrics is not None:
            with writing_to(self.run, METRICS):
                self.metrics.write({"step": step, **values})
        if self._trackers is not None:
            numbers = {name: value for name, value in values.items() if value is not None and math.isfinite(value)}
            self._trackers.log(numbers, step)

    def show_samples(self, folder: Path, step: int) -> None:
        """Send the samples in a folder to the trackers that have sound and pictures."""
        if self._trackers is not None:
            self._trackers.log_samples(folder, step)

    def write_and_print(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write metrics, if there are any, and print all but the points of curves, whose names have a slash."""
        if metrics:
            self.write(step, metrics)
            shown = {name: value for name, value in metrics.items() if "/" not in name}
            words = ", ".join(f"{name.replace('_', ' ')} {value:.5f}" for name, value in shown.items())
            self.print(f"step {step}: {words}")


def evaluation_bar(name: str, total: int, shown: bool) -> tqdm:
    """Return the progress bar of an evaluation within a run; it appears on a terminal after three seconds.

    Args:
        name: of what is computed.
        total: number of parts.
        shown: whether there is a bar.
    """
    return tqdm(total=total, desc=name, leave=False, delay=_DELAY, disable=not shown or not sys.stderr.isatty())


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
