"""The training loop. A run that is stopped anywhere and resumed equals the uninterrupted run."""

import contextlib
import math
import time
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import set_seed

from sashimi_diffusion.folder_lock import folder_locked
from sashimi_diffusion.launch import Launcher
from sashimi_diffusion.pipelines.hub import check_push, push_to_hub
from sashimi_diffusion.terminal import printable, say
from sashimi_diffusion.training import checkpoints
from sashimi_diffusion.training.accelerator import (
    create_accelerator,
    main_process_first,
    mean_over_processes,
    require_shared_checkpoint,
    set_threads,
)
from sashimi_diffusion.training.config import RunConfig, with_measured
from sashimi_diffusion.training.counters import Counters
from sashimi_diffusion.training.ema import Ema
from sashimi_diffusion.training.execution import compile_blocks, enable_gradient_checkpointing, memory_errors
from sashimi_diffusion.training.feed import Feed
from sashimi_diffusion.training.health import Health, RunEnded
from sashimi_diffusion.training.log import Log, ProgressBar
from sashimi_diffusion.training.optimizer import (
    create_optimizer,
    learning_rate_factor,
    set_learning_rate,
    watch_plateau,
)
from sashimi_diffusion.training.outputs import Outputs
from sashimi_diffusion.training.run_folder import check_startable, how_to_continue, read_measured
from sashimi_diffusion.training.step import Parts, create_step, decides_on_device
from sashimi_diffusion.training.task import Task
from sashimi_diffusion.training.trackers import installed_trackers


def train(
    task_class: type[Task],
    config: RunConfig,
    resume: bool = False,
    resume_from: str | None = None,
    skip_bad_files: bool = False,
    push: str | None = None,
    source: str | Path | None = None,
) -> Path:
    """Train and return the run folder.

    Args:
        task_class: the kind of run.
        config: the configuration of the run; it is not changed.
        resume: continue in ``config.output_dir`` from the newest checkpoint, or from the start if there is none yet.
        resume_from: continue from this checkpoint, for instance "checkpoints/step-000100"; later ones are renamed.
        skip_bad_files: ignore recordings that cannot be used instead of stopping.
        push: name of a repository on the Hugging Face hub, to which the pipeline is pushed after the run.
        source: the file of ``config``, for the first line of the output; None: no such line.

    Raises:
        UserError: the config, the data, the run folder or the training has a problem that the user can correct, or
            another run uses the folder. If the run has not started, its folder is unchanged.
        RunEnded: the run has diverged, or the program that started it has ended.
    """
    folder, accelerator, repository = Path(config.output_dir), create_accelerator(config), ""
    with contextlib.ExitStack() as lock:
        with main_process_first(accelerator):
            if accelerator.is_main_process:
                repository = "" if push is None else check_push(push)
                lock.enter_context(folder_locked(folder, "the run folder"))
        with memory_errors(config.training, accelerator.device, lambda: how_to_continue(folder)):
            Trainer(task_class, config, resume, resume_from, skip_bad_files, accelerator, source).run()
        if repository:
            say(f"pushed to {push_to_hub(folder / 'pipeline', repository)}")
    return folder


class Trainer:
    """A training run. The constructor opens the data, builds the network and loads the checkpoint.

    Args:
        task_class, config, resume, resume_from, skip_bad_files, source: see :func:`train`.
        accelerator: of the run; None: a new one.
    """

    def __init__(
        self,
        task_class: type[Task],
        config: RunConfig,
        resume: bool,
        resume_from: str | None,
        skip_bad_files: bool,
        accelerator: Accelerator | None = None,
        source: str | Path | None = None,
    ) -> None:
        self.config, self.folder, self._launcher = config, Path(config.output_dir), Launcher()
        resume = self._resume = resume or resume_from is not None
        self.accelerator = accelerator or create_accelerator(config)
        self._trackers = installed_trackers(config.training.trackers)
        with main_process_first(self.accelerator):
            if self.accelerator.is_main_process:
                check_startable(self.folder, resume)  # with the lock on the folder, nobody changes the answer
            checkpoint = checkpoints.find_checkpoint(self.folder, resume_from) if resume else None
        require_shared_checkpoint(self.accelerator, self.folder, checkpoint)
        self.log = Log(self.accelerator, self.folder)
        set_threads(self.accelerator, config.training.cpu_threads)
        set_seed(config.seed)
        measured = read_measured(self.folder) if resume else {}
        with main_process_first(self.accelerator):  # it decodes the recordings; processes beside it read its cache
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
        if source is not None:
            self.log.print(f"config: {printable(source)}")
        if checkpoint is not None:
            self._load(checkpoint)
        first = self.accelerator.process_index * per_process
        batches = [range(i, i + training.batch_size) for i in range(first, first + per_process, training.batch_size)]
        self.feed = Feed(self.task, batches, self.counters.global_batch, device)
        parts = Parts(self.accelerator, self.task, self.module, self.optimizer, self.ema, self.feed, config)
        self.step = create_step(parts, on_device, self.counters.nonfinite_in_row)
        self._norm = math.nan  # gradient norm of the last step that was read
        self._last_line = (self.counters.step, self.counters.seconds)  # of the last training line of metrics.jsonl
        self.health = Health(
            *(self.folder, self.counters, self.network, self.ema.model, self.optimizer), config.training.max_nonfinite
        )
        self._unproven: int | None = None  # step of a checkpoint that no good loss has followed yet
        self._postponed = False  # whether a checkpoint is due as soon as the run is in a good state
        self.outputs = Outputs(self.accelerator, self.folder, config, self.task, self.ema, self.log)
        self.accelerator.wait_for_everyone()
        with main_process_first(self.accelerator):
            if self.accelerator.is_main_process:
                self.outputs.open(checkpoint, resume, self.counters)

    def run(self) -> None:
        """Train until ``training.steps`` or ``training.max_minutes`` is reached.

        Raises:
            RunEnded: the run has diverged, or the program that started it has ended.
        """
        training, counters, shown = self.config.training, self.counters, self.accelerator.is_main_process
        progress = self._progress()
        self.log.print(self._description())
        if self._finished(progress):
            self.log.print(
                f"nothing to train: the run has {counters.step} steps and {counters.seconds / 60:.1f} minutes, "
                "which training.steps or training.max_minutes ends"
            )
        with (
            contextlib.closing(self.log),
            contextlib.closing(self.feed),
            ProgressBar(training, counters.step, shown) as bar,
        ):
            with main_process_first(self.accelerator):
                if self.accelerator.is_main_process:
                    self.log.start_trackers(self._trackers, self.config, counters.step, self._resume)
            self._draw_missing_samples(self._finished(progress))
            while not self._finished(progress):
                started = time.monotonic()
                rate = self._step(progress)
                counters.step += 1
                if not self.step.read_waits or self._due(training.log_every) or self._due(training.checkpoint_every):
                    bar.show_loss(self._read())
                counters.seconds += time.monotonic() - started
                progress = self._progress()
                bar.advance(progress)
                finished = self._finished(progress)
                abandoned = not finished and self._is_abandoned()
                self._after_step(rate, finished, abandoned)
                if abandoned:
                    raise RunEnded(
                        f"the program that started this run (process {self._launcher.process}) has ended: stopped at "
                        f"step {counters.step}; continue with --resume"
                    )
        self.accelerator.end_training()
        pipeline = printable(self.folder / "pipeline")
        self.log.print(f"done: {counters.step} steps, {counters.seconds / 60:.1f} minutes; {pipeline} is ready")

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
            RunEnded: ``training.max_nonfinite`` steps in a row were not finite.
        """
        results, loss = self.step.read(), math.nan
        first = self.counters.step - len(results) + 1
        for step, (loss, self._norm) in enumerate(results, first):
            if not self.health.count(step, loss, self._norm):
                self.log.print(f"step {step}: loss {loss}, gradient norm {self._norm}: skipped")
        if self._unproven is not None and self._unproven < self.health.good_step:
            checkpoints.remove_old(self.folder, self.config.training.keep_checkpoints)
            self._unproven = None
        return loss

    def _due(self, every: int, finished: bool = False) -> bool:
        """Return whether something that happens every ``every`` steps (0: never) and at the end happens now."""
        return every > 0 and (self.counters.step % every == 0 or finished)

    def _is_abandoned(self) -> bool:
        """Return whether the program that started a process has ended; equal on all processes.

        Several processes agree on it only where results are read anyway, so that it costs no time.
        """
        if self.counters.step % self.task.chunks:
            return False
        if self.accelerator.num_processes > 1 and not self._due(self.config.training.log_every):
            return False
        return mean_over_processes(self.accelerator, float(self._launcher.has_ended())) > 0

    def _after_step(self, rate: float, finished: bool, abandoned: bool) -> None:
        """Write what is due after this step.

        The samples come after the checkpoint, so that samples that fail cost no training; a run that resumes draws
        those that are missing (:meth:`_draw_missing_samples`). All other output comes before it.

        In a state that must not become a checkpoint (see :mod:`sashimi_diffusion.training.health`), the checkpoint is
        postponed.

        Raises:
            RunEnded: the run has finished in such a state.
        """
        training = self.config.training
        if finished or abandoned:
            self._read()
        logged = self._due(training.log_every, finished)
        if logged:
            self._log_training(rate)
        due = self._due(training.checkpoint_every, finished or abandoned)
        checkpoint = due or (self._postponed and logged and self.counters.step % self.task.chunks == 0)
        samples = checkpoint if training.sample_every is None else self._due(training.sample_every, finished)
        problem = self.health.problem(finished) if checkpoint or samples else ""
        if checkpoint:
            self._postponed = bool(problem)
        if finished:
            self.health.end(problem)
        if self._due(training.validate_every, finished) and not self._validate() and checkpoint:
            problem = problem or "the metrics of the validation are not finite"
        if finished:
            self.health.end(problem)
            self.log.write_and_print(self.counters.step, self.task.conclude(self.accelerator, self.ema.model))
        if checkpoint and not problem:
            self._save_checkpoint(finished)
        elif due:
            self.log.print(f"step {self.counters.step}: no checkpoint, because {problem}; {self.health.way_back()}")
        if samples and self.task.samples and not problem and not abandoned:
            self.outputs.save_samples(self.counters.step)

    def _draw_missing_samples(self, finished: bool) -> None:
        """Draw the samples that were due at the step of the checkpoint, unless the run folder has them."""
        training = self.config.training
        every = training.checkpoint_every if training.sample_every is None else training.sample_every
        if self.counters.step and self.task.samples and self._due(every, finished):
            self.outputs.save_samples(self.counters.step, only_missing=True)

    def _log_training(self, rate: float) -> None:
        """Log the mean loss since the last training line, and the gradient norm and learning rate of this step."""
        counters, (step, seconds) = self.counters, self._last_line
        self._last_line = (counters.step, counters.seconds)
        self.log.write(
            counters.step,
            {
                "loss": counters.loss_sum / counters.loss_count if counters.loss_count else None,
                "gradient_norm": self._norm if math.isfinite(self._norm) else None,
                "learning_rate": rate,
                "nonfinite_steps": counters.nonfinite_total,
                "seconds_per_step": round((counters.seconds - seconds) / (counters.step - step), 4),
                "seconds": round(counters.seconds, 2),
            },
        )
        counters.loss_sum, counters.loss_count = 0.0, 0

    def _validate(self) -> bool:
        """Log the metrics of the held-out data, and return whether they are finite."""
        metrics = self.task.validate(self.accelerator, self.ema.model)
        self.log.write_and_print(self.counters.step, metrics)
        if metrics and self.config.optimizer.decay == "plateau":
            watch_plateau(self.counters, metrics["validation_loss"], self.config.optimizer)
        return all(map(math.isfinite, metrics.values()))

    def _progress(self) -> float:
        """Return the completed share of the run, by steps or minutes, whichever is larger; equal on all processes."""
        training, counters = self.config.training, self.counters
        progress = counters.step / training.steps
        if training.max_minutes is not None:
            seconds = mean_over_processes(self.accelerator, counters.seconds)
            progress = max(progress, seconds / (60 * training.max_minutes))
        return progress

    def _finished(self, progress: float) -> bool:
        """Return whether the run ends now, see :attr:`Task.chunks`."""
        return progress >= 1 and self.counters.step % self.task.chunks == 0

    def _save_checkpoint(self, finished: bool) -> None:
        keep = self.config.training.keep_checkpoints
        # The checkpoint before it stays until a good loss shows that the run has not just exploded.
        self._unproven = self.counters.step if self.accelerator.is_main_process and not finished else None
        self.outputs.save_checkpoint(self.optimizer, self.counters, keep if finished else max(keep, 2))

    def _load(self, checkpoint: Path) -> None:
        """Load a checkpoint; raise UserError if it cannot be used or is of another run."""
        expected = self.counters
        self.counters = checkpoints.load_checkpoint(checkpoint, self.network, self.ema, self.optimizer)
        unchecked = self.counters.check_same_run(expected, printable(checkpoint))
        self.counters.data = expected.data
        self.log.print(f"resumed from {printable(checkpoint)}{unchecked}")

    def _description(self) -> str:
        """Return the first line of the output."""
        parameters = sum(parameter.numel() for parameter in self.network.parameters())
        end = "" if (minutes := self.config.training.max_minutes) is None else f"at most {minutes:g} minutes; "
        return (
            f"{type(self.network).__name__}, {parameters:,} parameters; {self.task.description}; "
            f"{self.counters.global_batch} examples per step on {self.accelerator.num_processes} x "
            f"{self.accelerator.device.type}; {end}run folder {printable(self.folder)}"
        )
