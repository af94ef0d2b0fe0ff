"""What a run writes besides its metrics: the first files of the run folder, samples, the pipeline and checkpoints."""

from pathlib import Path

import torch
from accelerate import Accelerator

from sashimi_diffusion.paths import status
from sashimi_diffusion.pipelines.hub import CARD
from sashimi_diffusion.terminal import printable
from sashimi_diffusion.training import checkpoints
from sashimi_diffusion.training.config import RunConfig, changed_settings
from sashimi_diffusion.training.counters import Counters
from sashimi_diffusion.training.ema import Ema
from sashimi_diffusion.training.log import Log
from sashimi_diffusion.training.model_card import is_kept, model_card
from sashimi_diffusion.training.muon import CombinedOptimizer
from sashimi_diffusion.training.run_folder import (
    CONFIG,
    METRICS,
    check_metrics,
    save_pipeline,
    write_config,
    write_measured,
    writing_to,
)
from sashimi_diffusion.training.task import Task
from sashimi_diffusion.training.yaml_files import read_yaml_file


class Outputs:
    """The writer of a run's results. The main process writes; all processes call the methods that say so.

    Args:
        accelerator: of the run.
        run: the run folder.
        config: configuration of the run.
        task: the kind of run.
        ema: the averaged weights, which samples and the pipeline have.
        log: reports of the run.
    """

    def __init__(self, accelerator: Accelerator, run: Path, config: RunConfig, task: Task, ema: Ema, log: Log) -> None:
        self.accelerator, self.run, self.config = accelerator, run, config
        self.task, self.ema, self.log = task, ema, log

    def open(self, checkpoint: Path | None, resume: bool, counters: Counters) -> None:
        """Write the first files of the run folder, or continue those of an earlier run. Only the main process calls."""
        if resume and checkpoint is None:
            self.log.print(f"{printable(self.run)} has no checkpoint yet: starting from the beginning")
        if resume and status(self.run / CONFIG) is not None:
            for change in changed_settings(self.config, read_yaml_file(self.run / CONFIG)):
                self.log.print(f"changed: {change}")
        if note := check_metrics(self.run / METRICS, counters.step, counters.metrics):
            self.log.print(note)
        with writing_to(self.run, "the run folder"):
            write_config(self.run, self.config)
            if self.task.measured:
                write_measured(self.run, self.task.measured)
            later = [] if checkpoint is None else checkpoints.set_later_aside(self.run, checkpoint)
            for path in later:
                self.log.print(f"set aside {printable(path)}")
            self.log.open(counters.step)
            if checkpoint is not None and (later or not (self.run / "pipeline").exists()):
                self._save_pipeline(counters.step)

    def save_samples(self, step: int, only_missing: bool = False) -> None:
        """Draw samples, and send them to the trackers. All processes call this method.

        Args:
            step: optimizer steps done.
            only_missing: draw none if the run folder has samples of this step.
        """
        folder = self.run / "samples" / checkpoints.checkpoint_name(step)
        if self.accelerator.is_main_process and not (only_missing and status(folder) is not None):
            with writing_to(self.run, "the samples"):
                defects = self.task.save_samples(self.run, step, self.ema.model)
            if defects:
                self.log.print(f"step {step}: {defects}")
            self.log.show_samples(folder, step)
        self.accelerator.wait_for_everyone()

    def save_checkpoint(
        self, optimizer: torch.optim.Optimizer | CombinedOptimizer, counters: Counters, keep: int
    ) -> None:
        """Write the pipeline and a checkpoint, of which the ``keep`` newest stay. All processes call this method."""
        if self.log.metrics is not None:
            with writing_to(self.run, "the pipeline"):
                self.log.metrics.sync()
                counters.metrics = self.log.metrics.digest
                self._save_pipeline(counters.step)
            with writing_to(self.run, "the checkpoint"):
                checkpoints.save_checkpoint(self.run, self.task.network, self.ema, optimizer, counters, keep)
        self.accelerator.wait_for_everyone()

    def _save_pipeline(self, step: int) -> None:
        files = {}
        if not is_kept(self.run / "pipeline" / CARD):
            figures = {} if self.log.metrics is None else self.log.metrics.latest
            card = model_card(self.config, self.task.usage, self.task.description, step, figures)
            files[CARD] = card.encode(errors="backslashreplace")
        save_pipeline(self.run, self.task.pipeline(self.ema.model), files)
