"""The training loop: one class, one step at a time, able to stop anywhere and go on as if it had not."""

import contextlib
import math
import os
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from tqdm.auto import tqdm

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.files import writing
from sashimi_diffusion.training import checkpoints
from sashimi_diffusion.training.checkpoints import Counters
from sashimi_diffusion.training.config import RunConfig, to_tree
from sashimi_diffusion.training.ema import Ema
from sashimi_diffusion.training.metrics import MetricsFile
from sashimi_diffusion.training.optimizer import (
    create_optimizer,
    gradient_norm,
    learning_rate_factor,
    scale_gradients,
    set_learning_rate,
    watch_plateau,
)
from sashimi_diffusion.training.run_folder import check_startable, write_config
from sashimi_diffusion.training.saved_pipeline import save_pipeline
from sashimi_diffusion.training.task import Task
from sashimi_diffusion.training.trackers import create_accelerator, start_trackers


def train(
    task_class: type[Task],
    config: RunConfig,
    resume: bool = False,
    resume_from: str | None = None,
    skip_bad_files: bool = False,
) -> Path:
    """Train as ``config`` says; returns the run folder.

    Args:
        task_class: the kind of run.
        config: the whole run.
        resume: go on in ``config.output_dir`` from its newest checkpoint (from the start if it has none yet).
        resume_from: go on from this checkpoint instead, for instance "checkpoints/step-000100"; sets later ones aside.
        skip_bad_files: leave out recordings that cannot be used instead of stopping.

    Raises:
        UserError: anything the user can put right; the run folder then holds what it held.
    """
    trainer = Trainer(task_class, config, resume, resume_from, skip_bad_files)
    trainer.run()
    return trainer.folder


class Trainer:
    """All parts of a run; building one opens the data, makes the network and loads the checkpoint."""

    def __init__(
        self,
        task_class: type[Task],
        config: RunConfig,
        resume: bool,
        resume_from: str | None,
        skip_bad_files: bool,
    ):
        self.config, self.folder = config, Path(config.output_dir)
        check_startable(self.folder, resume or resume_from is not None)
        checkpoint = checkpoints.find_checkpoint(self.folder, resume_from)
        self.accelerator = create_accelerator(config)
        _set_threads(self.accelerator, config.training.cpu_threads)
        set_seed(config.seed)

        with self.accelerator.main_process_first():  # the others find the recordings decoded
            self.task = task_class(config, self.accelerator.device, skip_bad_files)
        self.network = self.task.network
        self.module = self.accelerator.prepare(self.task.module)
        self.optimizer = create_optimizer(self.network, config.optimizer)
        self.ema = Ema(self.network, config.training.ema_decay)

        training = config.training
        per_process = training.batch_size * training.gradient_accumulation
        self.counters = Counters(global_batch=per_process * self.accelerator.num_processes, data=self.task.data)
        if checkpoint is not None:
            self._load(checkpoint)
        self._last_line = (self.counters.step, self.counters.seconds)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            with self._writing("the run folder"):
                write_config(self.folder, config)
                if checkpoint is not None:
                    for path in checkpoints.set_later_aside(self.folder, checkpoint):
                        self._say(f"set aside {path}")
                self.metrics = MetricsFile(self.folder / "metrics.jsonl", self.counters.step)
                if not (self.folder / "pipeline").exists():
                    save_pipeline(self.folder, self.task.pipeline(self.ema.model))
        start_trackers(self.accelerator, to_tree(config), self.counters.step)

    def run(self) -> None:
        """Train to ``training.steps``, or as long as ``training.max_minutes`` allows."""
        total, counters = self.config.training.steps, self.counters
        progress = self._progress()
        self._say(self._description())
        bar = tqdm(
            total=total,
            initial=counters.step,
            unit="step",
            disable=not self.accelerator.is_main_process,
            mininterval=0.5 if sys.stderr.isatty() else 30,  # a log file wants no line per step
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
        self._say(
            f"done: {counters.step} steps, {counters.seconds / 60:.1f} minutes; {self.folder / 'pipeline'} is ready"
        )

    def _step(self, progress: float) -> tuple[float, float, float]:
        """One optimiser step, skipped if not finite: mean loss of the global batch, gradient norm, learning rate."""
        training, optimizer = self.config.training, self.config.optimizer
        step, batch_size = self.counters.step, training.batch_size
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
        """Take a step's result into the counters."""
        counters = self.counters
        if math.isfinite(loss) and math.isfinite(norm):
            counters.loss_sum += loss
            counters.loss_count += 1
            counters.nonfinite_in_row = 0
        else:
            counters.nonfinite_total += 1
            counters.nonfinite_in_row += 1
            self._say(f"step {counters.step}: loss {loss}, gradient norm {norm}: skipped")

    def _nonfinite_message(self, loss: float) -> str:
        """Name what is not finite, the first parameter in the network's order."""
        count = self.config.training.max_nonfinite
        advice = "resume with a lower optimizer.lr or a lower optimizer.gradient_clip"
        parameters = list(self.network.named_parameters())
        values = [(f"the parameter {name}", parameter) for name, parameter in parameters]
        gradients = [(f"the gradient of the parameter {name}", parameter.grad) for name, parameter in parameters]
        for what, tensor in values + gradients:
            if tensor is not None and not tensor.isfinite().all():
                return f"{count} steps in a row were not finite: first of all {what}; {advice}"
        return f"{count} steps in a row were not finite: the loss is {loss}, all parameters and gradients are; {advice}"

    def _after_step(self, norm: float, rate: float, finished: bool) -> None:
        """What is due after this step, the checkpoint last: what it covers is then all there."""
        training, step = self.config.training, self.counters.step

        def due(every: int) -> bool:
            return every > 0 and (step % every == 0 or finished)

        if due(training.log_every):
            self._log_training(norm, rate)
        if due(training.validate_every):
            self._validate()
        if finished:
            self._say_and_log(self.task.conclude(self.accelerator, self.ema.model))
        checkpoint = due(training.checkpoint_every)
        samples = checkpoint if training.sample_every is None else due(training.sample_every)
        if samples and self.task.samples:
            self._save_samples()
        if checkpoint:
            self._save_checkpoint()

    def _log_training(self, norm: float, rate: float) -> None:
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
        if self.accelerator.is_main_process:
            with self._writing("metrics.jsonl"):
                self.metrics.write({"step": self.counters.step, **values})
        numbers = {name: value for name, value in values.items() if value is not None}
        self.accelerator.log(numbers, step=self.counters.step)

    def _validate(self) -> None:
        figures = self.task.validate(self.accelerator, self.ema.model)
        self._say_and_log(figures)
        if figures and self.config.optimizer.decay == "plateau":
            watch_plateau(self.counters, figures["validation_loss"], self.config.optimizer)

    def _say_and_log(self, figures: dict[str, float]) -> None:
        if figures:
            self._log(figures)
            words = ", ".join(f"{name.replace('_', ' ')} {value:.5f}" for name, value in figures.items())
            self._say(f"step {self.counters.step}: {words}")

    def _progress(self) -> float:
        """Share of the run that is done, by steps or by minutes, whichever is more; equal on all processes."""
        training, counters = self.config.training, self.counters
        progress = counters.step / training.steps
        if training.max_minutes is not None:
            seconds = torch.tensor(counters.seconds, device=self.accelerator.device)
            mean = self.accelerator.reduce(seconds, "mean").item()
            progress = max(progress, mean / (60 * training.max_minutes))
        return progress

    def _finished(self, progress: float) -> bool:
        return progress >= 1 and self.counters.step % self.task.chunks == 0

    def _save_samples(self) -> None:
        if self.accelerator.is_main_process:
            step = self.counters.step
            with self._writing("the samples"):
                complaints = self.task.save_samples(self.folder, step, self.ema.model)
            if complaints:
                self._say(f"step {step}: {complaints}")
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
        """Take over a checkpoint's state.

        Raises:
            UserError: it was made with other data or another global batch.
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
                f"{checkpoint} was made with other recordings than `data` of the config gives now: restore them, or "
                "start anew in another output_dir"
            )
        self._say(f"resumed from {checkpoint}")

    def _writing(self, what: str):
        saved = checkpoints.list_checkpoints(self.folder)
        last = f"the last good checkpoint is {saved[-1]}: " if saved else ""
        return writing(what, f"{last}make room or allow writing, then continue with --resume")

    def _description(self) -> str:
        parameters = sum(parameter.numel() for parameter in self.network.parameters())
        return (
            f"{type(self.network).__name__}, {parameters:,} parameters; {self.task.description}; "
            f"{self.counters.global_batch} examples per step on "
            f"{self.accelerator.num_processes} x {self.accelerator.device.type}; run folder {self.folder}"
        )

    def _say(self, text: str) -> None:
        if self.accelerator.is_main_process:
            tqdm.write(text)


def _set_threads(accelerator: Accelerator, threads: int | None) -> None:
    """Use all cores of a CPU: ``accelerate launch`` gives each process one unless it is told otherwise."""
    if accelerator.device.type == "cpu":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(threads or max(1, cores // accelerator.num_processes))
