"""The training loop. A run that is stopped anywhere and resumed equals the uninterrupted run."""

import contextlib
import math
import sys
import time
from pathlib import Path
from typing import Any

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
from sashimi_diffusion.training.optimizer import (
    create_optimizer,
    gradient_norm,
    learning_rate_factor,
    scale_gradients,
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
        if config.training.gradient_checkpointing:
            _enable_gradient_checkpointing(self.network)
        self.module = self.accelerator.prepare(self.task.module)
        self.optimizer = create_optimizer(self.network, config.optimizer)
        self.ema = Ema(self.network, config.training.ema_decay)

        training = config.training
        per_process = training.batch_size * training.gradient_accumulation
        self.counters = Counters(global_batch=per_process * self.accelerator.num_processes, data=self.task.data)
        if checkpoint is not None:
            self._load(checkpoint)
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
        total, counters = self.config.training.steps, self.counters
        progress = self._progress()
        self._print(self._description())
        bar = tqdm(
            total=total,
            initial=counters.step,
            unit="step",
            disable=not self.accelerator.is_main_process,
            mininterval=0.5 if sys.stderr.isatty() else 30,  # few lines in a log file
        )
        while not self._finished(progress):
            started = time.monotonic()
            loss, norm, rate = self._step(progress)
            counters.step += 1
            counters.seconds += time.monotonic() - started
            self._count(loss, norm)
            bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
            bar.update()
            progress = self._progress()
            self._after_step(norm, rate, self._finished(progress))
        bar.close()
        if self.accelerator.is_main_process:
            self.metrics.close()
        self.accelerator.end_training()
        self._print(
            f"done: {counters.step} steps, {counters.seconds / 60:.1f} minutes; {self.folder / 'pipeline'} is ready"
        )

    def _step(self, progress: float) -> tuple[float, float, float]:
        """Take an optimizer step; skip it if the loss or the gradient is not finite.

        Returns:
            mean loss of the global batch, 2-norm of the gradient before clipping, learning rate.

        Raises:
            UserError: ``training.max_nonfinite`` steps in a row were not finite.
        """
        training, optimizer = self.config.training, self.config.optimizer
        step, batch_size = self.counters.step, training.batch_size
        # With training.max_minutes, the number of steps of the whole run is an estimate.
        expected_steps = step / progress if step else training.steps
        factor = learning_rate_factor(step, expected_steps, optimizer) * self.counters.plateau_factor
        rate = set_learning_rate(self.optimizer, factor)
        first = self.accelerator.process_index * batch_size * training.gradient_accumulation
        total = torch.zeros((), device=self.accelerator.device)
        for part in range(training.gradient_accumulation):
            start = first + part * batch_size
            positions = range(start, start + batch_size)
            last = part == training.gradient_accumulation - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.module):
                loss = self.task.loss(self.module, step, positions, self.counters.global_batch)
                loss = loss / training.gradient_accumulation
                self.accelerator.backward(loss)
            total += loss.detach()
        norm = gradient_norm(self.network)
        loss, norm = torch.stack([self.accelerator.reduce(total, "mean"), norm]).tolist()
        if math.isfinite(loss) and math.isfinite(norm):
            if optimizer.gradient_clip is not None and norm > optimizer.gradient_clip:
                scale_gradients(self.network, optimizer.gradient_clip / norm)
            self.optimizer.step()
            self.ema.update(self.network)
        elif self.counters.nonfinite_in_row + 1 >= training.max_nonfinite:
            raise UserError(self._nonfinite_message(loss))
        self.optimizer.zero_grad(set_to_none=True)
        return loss, norm, rate

    def _count(self, loss: float, norm: float) -> None:
        """Add the result of a step to the counters."""
        counters = self.counters
        if math.isfinite(loss) and math.isfinite(norm):
            counters.loss_sum += loss
            counters.loss_count += 1
            counters.nonfinite_in_row = 0
        else:
            counters.nonfinite_total += 1
            counters.nonfinite_in_row += 1
            self._print(f"step {counters.step}: loss {loss}, gradient norm {norm}: skipped")

    def _nonfinite_message(self, loss: float) -> str:
        """Return an error text that names the first parameter or gradient that is not finite."""
        count = self.config.training.max_nonfinite
        advice = "resume with a lower optimizer.lr or a lower optimizer.gradient_clip"
        parameters = list(self.network.named_parameters())
        values = [(f"the parameter {name}", parameter) for name, parameter in parameters]
        gradients = [(f"the gradient of the parameter {name}", parameter.grad) for name, parameter in parameters]
        for what, tensor in values + gradients:
            if tensor is not None and not tensor.isfinite().all():
                return f"{count} steps in a row were not finite: first of all {what}; {advice}"
        return (
            f"{count} steps in a row were not finite: the loss is {loss}, but all parameters and gradients are finite; "
            f"{advice}"
        )

    def _after_step(self, norm: float, rate: float, finished: bool) -> None:
        """Write what is due after this step, the checkpoint last: a run that resumes from it has all earlier output."""
        training, step = self.config.training, self.counters.step

        def due(every: int) -> bool:
            return every > 0 and (step % every == 0 or finished)

        if due(training.log_every):
            self._log_training(norm, rate)
        if due(training.validate_every):
            self._validate()
        if finished:
            self._log_and_print(self.task.conclude(self.accelerator, self.ema.model))
        checkpoint = due(training.checkpoint_every)
        samples = checkpoint if training.sample_every is None else due(training.sample_every)
        if samples and self.task.samples:
            self._save_samples()
        if checkpoint:
            self._save_checkpoint()

    def _log_training(self, norm: float, rate: float) -> None:
        """Log the mean loss since the last training line, and the gradient norm and learning rate of this step."""
        counters, (step, seconds) = self.counters, self._last_line
        self._last_line = (counters.step, counters.seconds)
        self._log(
            {
                "loss": counters.loss_sum / counters.loss_count if counters.loss_count else None,
                "gradient_norm": norm if math.isfinite(norm) else None,
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
            seconds = torch.tensor(counters.seconds, device=self.accelerator.device)
            mean = self.accelerator.reduce(seconds, "mean").item()
            progress = max(progress, mean / (60 * training.max_minutes))
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


def _enable_gradient_checkpointing(network: Any) -> None:
    try:
        network.enable_gradient_checkpointing()
    except ValueError:
        raise UserError(
            f"training.gradient_checkpointing is true, but {type(network).__name__} does not support it: set false"
        ) from None
