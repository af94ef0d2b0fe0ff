"""Distillation: a student of a trained pipeline, which samples in few steps and needs no guidance.

Compared with the sampling of the teacher in 20 steps with guidance, which calls the network 40 times, a student of four
steps calls it four times.
"""

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models.stored import read_object
from sashimi_diffusion.pipelines.loading import resolve_pipeline, stored_guidance_scale
from sashimi_diffusion.pipelines.sashimi import SashimiPipeline
from sashimi_diffusion.schedulers.compatible import create_few_step_scheduler, set_few_steps
from sashimi_diffusion.schedulers.noise_paths import noise_path
from sashimi_diffusion.ssm import frozen
from sashimi_diffusion.training.diffusion.batches import Batch, Windows
from sashimi_diffusion.training.diffusion.samples import save_samples
from sashimi_diffusion.training.diffusion.task import DiffusionTask
from sashimi_diffusion.training.distillation.config import DistillationConfig
from sashimi_diffusion.training.distillation.estimates import Estimator, Teacher
from sashimi_diffusion.training.distillation.students import STUDENTS, DistillationBatch
from sashimi_diffusion.training.examples import DISTILLATION, stream
from sashimi_diffusion.training.log import evaluation_bar
from sashimi_diffusion.training.model_card import diffusion_usage
from sashimi_diffusion.training.run_folder import Saveable

_SCHEDULER = "scheduler/scheduler_config.json"
_MOST_NOISE = 1000.0  # levels from which the audio in a prediction of the noise is lost


class DistillationTask(DiffusionTask):
    """Distillation; implements :class:`sashimi_diffusion.training.task.Task`. ``network`` contains the student."""

    config: DistillationConfig

    def __init__(self, config: DistillationConfig, device: torch.device, skip_bad_files: bool) -> None:
        _require_teacher(config.training.initial_pipeline)
        super().__init__(config, device, skip_bad_files)
        method, student = config.distillation, self.network
        estimator = Estimator(noise_path(self.scheduler).to(device, torch.float32))
        predicts_noise = config.objective.name == "diffusion" and config.schedule.prediction_type == "epsilon"
        if predicts_noise and estimator.path.highest > _MOST_NOISE:
            raise UserError(
                f"the teacher predicts noise (schedule.prediction_type=epsilon) up to a level of noise of "
                f"{estimator.path.highest:.0f} times the audio, where the smallest error hides the audio: distill a "
                "teacher with v_prediction, flow matching or EDM, or with the linear schedule"
            )
        model = copy.deepcopy(student).eval().requires_grad_(False)
        folder = resolve_pipeline(config.training.initial_pipeline or "")
        guidance = stored_guidance_scale(folder) if method.guidance_scale is None else method.guidance_scale
        self.teacher = Teacher(model, estimator, guidance)
        self.network = self.module = STUDENTS[method.method](student, estimator, method.levels)
        self.sampler = create_few_step_scheduler(self.scheduler.config, method.steps)
        set_few_steps(self.sampler, method.steps)
        self.starts: Tensor = self.sampler.timesteps
        self.usage = diffusion_usage(student, method.steps)
        self.description += f"; {method.steps} sampling steps, guidance {guidance:g} of the teacher"

    def complete(self, batch: Batch | Windows, step: int, positions: range, global_batch: int) -> DistillationBatch:
        """Return the examples with their noise, timesteps, and the timesteps at which the student begins.

        The second noise is drawn for the whole global batch from the seed and the step.
        """
        completed = super().complete(batch, step, positions, global_batch)
        random = torch.Generator().manual_seed(int(stream(DISTILLATION, self.config.seed, step).integers(2**63)))
        second = torch.randn(global_batch, *completed.waveform.shape[1:], generator=random)
        first = int(torch.randint(len(self.starts), (), generator=random))
        places = [(first + position) % len(self.starts) for position in positions]
        second = second[positions.start : positions.stop]
        return self._with_starts(completed, self.starts[places], second)

    def loss(self, module: nn.Module, batch: Batch) -> Tensor:
        """Return the mean loss of a batch, see :mod:`sashimi_diffusion.training.distillation.students`."""
        loss: Tensor = module(batch, self.teacher)
        return loss

    @torch.no_grad()
    def validate(self, accelerator: Accelerator, network: nn.Module) -> dict[str, float]:
        """Return the mean loss of held-out recordings; the processes share the work."""
        if self.validation is None:
            return {}
        size = self.config.training.batch_size
        count = min(len(self.validation.dataset), self.config.training.validation_examples)
        batches = [range(start, min(start + size, count)) for start in range(0, count, size)]
        total = torch.zeros((), device=accelerator.device)
        own = batches[accelerator.process_index :: accelerator.num_processes]
        with frozen(network), evaluation_bar("validation", len(own), accelerator.is_main_process) as bar:
            for chosen in own:
                examples = self.validation.validation_batch(chosen)
                random = torch.Generator().manual_seed(chosen.start)
                second = torch.randn(examples.waveform.shape, generator=random)
                starts = self.starts[[index % len(self.starts) for index in chosen]]
                with accelerator.autocast():
                    total += network(self._with_starts(examples, starts, second), self.teacher) * len(chosen)
                bar.update()
        return {"validation_loss": accelerator.reduce(total, "sum").item() / count}

    def pipeline(self, network: Any) -> Saveable:
        """Return the pipeline of the student, whose scheduler has the steps of the student as its default."""
        pipeline: Any = SashimiPipeline(network.student, self.sampler)
        return pipeline

    def save_samples(self, run: Path, step: int, network: Any) -> str:
        """Draw samples of the student in its own steps."""
        own = {"scheduler": None, "steps": self.config.distillation.steps}
        sampling = self.config.sampling.model_copy(update=own)
        recordings = self.validation or self.source
        return save_samples(run, step, network.student, self.sampler, sampling, recordings, guidance_scale=1.0)

    def _with_starts(self, batch: Batch, starts: Tensor, noise: Tensor) -> DistillationBatch:
        own = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
        return DistillationBatch(**own, start=starts.to(self.device), second_noise=noise.to(self.device))


def _require_teacher(pipeline: str | None) -> None:
    """Check that the initial pipeline, if one is named, is no student."""
    if pipeline is not None and "original_inference_steps" in read_object(resolve_pipeline(pipeline) / _SCHEDULER):
        raise UserError(
            "training.initial_pipeline is a student, which is no teacher, because it knows the noise levels of its "
            "steps only: name the pipeline that it was distilled from"
        )
