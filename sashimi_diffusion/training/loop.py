"""The training loop. A run that is stopped anywhere and resumed equals the uninterrupted run."""

import contextlib
import math
import sys
import time
from pathlib import Path

import torch
from accelerate.utils import set_seed
from tqdm.auto import tqdm

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.files import writing
from sashimi_diffusion.training import checkpoints
from sashimi_diffusion.training.accelerator import create_accelerator, set_threads, start_trackers
from sashimi_diffusion.training.checkpoints import Counters
from sashimi_diffusion.training.config import RunConfig, to_tree, with_measured
from sashimi_diffusion.training.ema import Ema
from sashimi_diffusion.training.execution import compile_blocks, enable_gradient_checkpointing
from sashimi_diffusion.training.feed import Feed
from sashimi_diffusion.training.optimizer import (
    create_optimizer,
    learning_rate_factor,
    set_learning_rate,
    watch_plateau,
)
from sashimi_diffusion.training.run_folder import (
    MetricsFile,
    check_startable,
    read_measured,
    save_pipeline,
    write_config,
    write_measured,
)
from sashimi_diffusion.training.step import Parts, create_step, decides_on_device, nonfinite_message
from sashimi_diffusion.training.task import Task


def train(
    task_class: type[Task],
    config: RunConfig,
    resume: bool = False,
    resume_from: str | None = None,
    skip_bad_files: bool = False,
) -> Path:
    """Train and return the run folder.

    Args:
        task_class: the kind of run.
        config: the configuration of the run; it is not changed.
        resume: continue in ``config.output_dir`` from the newest checkpoint, or from the start if there is none yet.
        resume_from: continue from this checkpoint instead, for instance "checkpoints/step-000100"; later checkpoints
            are renamed.
        skip_bad_files: ignore recordings that cannot be used instead of stopping.

    Raises:
        UserError: the config, the data, the run folder or the training has a problem that the user can correct. If the
            run has not started, its folder is unchanged.
    """
    trainer = Trainer(task_class, config, resume, resume_from, skip_bad_files)
    trainer.run()
    return trainer.folder


class Trainer:
    """A training run. The constructor opens the data, builds the network and loads the checkpoint.

    Args:
        task_class, config, resume, resume_from, skip_bad_files: see :func:`train`.
    """

    def __init__(
        self,
        task_class: type[Task],
        config: RunConfig,
        resume: bool,
        resume_from: str | None,
        skip_bad_files: bool,
    ) -> None:
        self.config, self.folder = config, Path(config.output_dir)
        resume = resume or resume_from is not None
        check_startable(self.folder, resume)
        checkpoint = checkpoints.find_checkpoint(self.folder, resume_from)
        self.accelerator = create_accelerator(config)
        set_threads(self.accelerator, config.training.cpu_threads)
        set_seed(config.seed)

        measured = read_measured(self.folder) if resume else {}
        with self.accelerator.main_process_first():  # it decodes the recordings; the other processes read its cache
            self.task = task_class(with_measured(config, measured), self.accelerator.device, skip_bad_files)
        self.network = self.task.network
        training, device = config.training, self.accelerator.device
        if training.gradient_checkpointing:
            enable_gradient_checkpointing(self.network)
        if training.compile:
            compile_blocks(self.network, device)
        self.module = self.accelerator.prepare(self.task.module)
        on_device = decides_on_device(config, self.task, device)
        self.optimizer = create_optimizer(self.network, config.optimizer, on_device)
        self.ema = Ema(self.network, training.ema_decay)

        per_process = training.batch_size * training.gradient_accumulation
        self.counters = Counters(global_batch=per_process * self.accelerator.num_processes, data=self.task.data)
        if checkpoint is not None:
            self._load(checkpoint)
        first = self.accelerator.process_index * per_process
        starts = range(first, first + per_process, training.batch_size)
        batches = [range(start, start + training.batch_size) for start in starts]
        self.feed = Feed(self.task, batches, self.counters.global_batch, device)
        parts = Parts(self.accelerator, self.task, self.module, self.optimizer, self.ema, self.feed, config)
        self.step = create_step(parts, on_device, self.counters.nonfinite_in_row)
        self._norm = math.nan  # gradient norm of the last step that was read
        self._last_line = (self.counters.step, self.counters.seconds)  # of the last training line of metrics.jsonl
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            with self._writing("the run folder"):
                write_config(self.folder, config)
                if self.task.measured:
                    write_measured(self.folder, self.task.measured)
                if checkpoint is not None:
                    for path in checkpoints.set_later_aside(self.folder, checkpoint):
                        self._print(f"set aside {path}")
                self.metrics = MetricsFile(self.folder / "metrics.jsonl", self.counters.step)
                if not (self.folder / "pipeline").exists():
                    save_pipeline(self.folder, self.task.pipeline(self.ema.model))
        start_trackers(self.accelerator, to_tree(config), self.counters.step)

    def run(self) -> None:
        """Train until ``training.steps`` or ``training.max_minutes`` is reached."""
        training, counters = self.config.training, self.counters
        progress = self._progress()
        self._print(self._description())
        bar = tqdm(
            total=training.steps,
            initial=counters.step,
            unit="step",
            disable=not self.accelerator.is_main_process,
            mininterval=0.5 if sys.stderr.isatty() else 30,  # few lines in a log file
        )
        with contextlib.closing(self.feed):
            while not self._finished(progress):
                started = time.monotonic()
                rate = self._step(progress)
                counters.step += 1
                if not self.step.read_waits or self._due(training.log_every) or self._due(training.checkpoint_every):
                    bar.set_postfix(loss=f"{self._read():.4f}", refresh=False)
                counters.seconds += time.monotonic() - started
                bar.update()
                progress = self._progress()
                self._after_step(rate, self._finished(progress))
        bar.close()
        if self.accelerator.is_main_process:
            self.metrics.close()
        self.accelerator.end_training()
        self._print(
            f"done: {counters.step} steps, {counters.seconds / 60:.1f} minutes; {self.folder / 'pipeline'} is ready"
        )

    def _step(self, progress: float) -> float:
        """Take an optimizer step, see :mod:`sashimi_diffusion.training.step`; return its learning rate."""
        step, optimizer = self.counters.step, self.config.optimizer
        # With training.max_minutes, the number of steps of the whole run is an estimate.
        expected_steps = step / progress if step else self.config.training.steps
        factor = learning_rate_factor(step, expected_steps, optimizer) * self.counters.plateau_factor
        rate = set_learning_rate(self.optimizer, factor)
        self.step.run(step)
        return rate

    def _read(self) -> float:
        """Count the results of the steps that were not read yet, and return the last loss; NaN if there are none.

        Raises:
            UserError: ``training.max_nonfinite`` steps in a row were not finite.
        """
        counters, results = self.counters, self.step.read()
        loss = math.nan
        for step, (loss, self._norm) in enumerate(results, counters.step - len(results) + 1):
            if math.isfinite(loss) and math.isfinite(self._norm):
                counters.loss_sum += loss
                counters.loss_count += 1
                counters.nonfinite_in_row = 0
                continue
            counters.nonfinite_total += 1
            counters.nonfinite_in_row += 1
            if counters.nonfinite_in_row >= self.config.training.max_nonfinite:
                raise UserError(nonfinite_message(self.network, loss, counters.nonfinite_in_row))
            self._print(f"step {step}: loss {loss}, gradient norm {self._norm}: skipped")
        return loss

    def _due(self, every: int, finished: bool = False) -> bool:
        """Return whether something that happens every ``every`` steps (0: never) and at the end happens now."""
        return every > 0 and (self.counters.step % every == 0 or finished)

    def _after_step(self, rate: float, finished: bool) -> None:
        """Write what is due after this step, the checkpoint last: a run that resumes from it has all earlier output."""
        training = self.config.training
        if finished:
            self._read()
        if self._due(training.log_every, finished):
            self._log_training(rate)
        if self._due(training.validate_every, finished):
            self._validate()
        if finished:
            self._log_and_print(self.task.conclude(self.accelerator, self.ema.model))
        checkpoint = self._due(training.checkpoint_every, finished)
        samples = checkpoint if training.sample_every is None else self._due(training.sample_every, finished)
        if samples and self.task.samples:
            self._save_samples()
        if checkpoint:
            self._save_checkpoint()

    def _log_training(self, rate: float) -> None:
        """Log the mean loss since the last training line, and the gradient norm and learning rate of this step."""
        counters, (step, seconds) = self.counters, self._last_line
        self._last_line = (counters.step, counters.seconds)
        self._log(
            {
                "loss": counters.loss_sum / counters.loss_count if counters.loss_count else None,
                "gradient_norm": self._norm if math.isfinite(self._norm) else None,
                "learning_rate": rate,
                "nonfinite_steps": counters.nonfinite_total,
                "seconds_per_step": round((counters.seconds - seconds) / (counters.step - step), 4),
                "seconds": round(counters.seconds, 2),
            }
        )
        counters.loss_sum, counters.loss_count = 0.0, 0

    def _log(self, values: dict) -> None:
        """Write a line of metrics.jsonl and send its numbers to the trackers."""
        if self.accelerator.is_main_process:
            with self._writing("metrics.jsonl"):
                self.metrics.write({"step": self.counters.step, **values})
        numbers = {name: value for name, value in values.items() if value is not None}
        self.accelerator.log(numbers, step=self.counters.step)

    def _validate(self) -> None:
        metrics = self.task.validate(self.accelerator, self.ema.model)
        self._log_and_print(metrics)
        if metrics and self.config.optimizer.decay == "plateau":
            watch_plateau(self.counters, metrics["validation_loss"], self.config.optimizer)

    def _log_and_print(self, metrics: dict[str, float]) -> None:
        if metrics:
            self._log(metrics)
            words = ", ".join(f"{name.replace('_', ' ')} {value:.5f}" for name, value in metrics.items())
            self._print(f"step {self.counters.step}: {words}")

    def _progress(self) -> float:
        """Return the completed share of the run, by steps or minutes, whichever is larger; equal on all processes."""
        training, counters = self.config.training, self.counters
        progress = counters.step / training.steps
        if training.max_minutes is not None:
            seconds = counters.seconds
            if self.accelerator.num_processes > 1:
                mean = self.accelerator.reduce(torch.tensor(seconds, device=self.accelerator.device), "mean")
                seconds = mean.item()
            progress = max(progress, seconds / (60 * training.max_minutes))
        return progress

    def _finished(self, progress: float) -> bool:
        """Return whether the run ends now, see :attr:`Task.chunks`."""
        return progress >= 1 and self.counters.step % self.task.chunks == 0

    def _save_samples(self) -> None:
        if self.accelerator.is_main_process:
            step = self.counters.step
            with self._writing("the samples"):
                defects = self.task.save_samples(self.folder, step, self.ema.model)
            if defects:
                self._print(f"step {step}: {defects}")
        self.accelerator.wait_for_everyone()

    def _save_checkpoint(self) -> None:
        if self.accelerator.is_main_process:
            with self._writing("the pipeline"):
                self.metrics.sync()
                save_pipeline(self.folder, self.task.pipeline(self.ema.model))
            with self._writing("the checkpoint"):
                keep = self.config.training.keep_checkpoints
                checkpoints.save_checkpoint(self.folder, self.network, self.ema, self.optimizer, self.counters, keep)
        self.accelerator.wait_for_everyone()

    def _load(self, checkpoint: Path) -> None:
        """Load a checkpoint.

        Raises:
            UserError: it was written with other data or another global batch.
        """
        expected = self.counters
        self.counters = checkpoints.load_checkpoint(checkpoint, self.network, self.ema, self.optimizer)
        if self.counters.global_batch != expected.global_batch:
            raise UserError(
                f"{checkpoint} was made with {self.counters.global_batch} examples per step, this command has "
                f"{expected.global_batch}: set training.batch_size and training.gradient_accumulation so that their "
                f"product with the {self.accelerator.num_processes} process(es) is the same"
            )
        if self.counters.data != expected.data:
            raise UserError(
                f"{checkpoint} was made with other recordings than `data` of the config selects now: restore them, or "
                "start again in another output_dir"
            )
        self._print(f"resumed from {checkpoint}")

    def _writing(self, what: str) -> contextlib.AbstractContextManager[None]:
        """Return a context that reports a full disk or a missing permission with advice on how to continue."""
        saved = checkpoints.list_checkpoints(self.folder)
        last = f"the last good checkpoint is {saved[-1]}: " if saved else ""
        return writing(what, f"{last}make room or allow writing, then continue with --resume")

    def _description(self) -> str:
        """Return the first line of the output."""
        parameters = sum(parameter.numel() for parameter in self.network.parameters())
        return (
            f"{type(self.network).__name__}, {parameters:,} parameters; {self.task.description}; "
            f"{self.counters.global_batch} examples per step on "
            f"{self.accelerator.num_processes} x {self.accelerator.device.type}; run folder {self.folder}"
        )

    def _print(self, text: str) -> None:
        if self.accelerator.is_main_process:
            tqdm.write(text)
