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

from sashimi_diffusion.arguments import short_form
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.paths import read_json
from sashimi_diffusion.pipelines.loading import hash_pipeline, resolve_pipeline, stored_guidance_scale
from sashimi_diffusion.pipelines.sashimi import SashimiPipeline
from sashimi_diffusion.schedulers.compatible import create_few_step_scheduler, set_few_steps
from sashimi_diffusion.schedulers.noise_paths import noise_path
from sashimi_diffusion.ssm import frozen
from sashimi_diffusion.training.diffusion.batches import Batch, Windows
from sashimi_diffusion.training.diffusion.samples import save_samples
from sashimi_diffusion.training.diffusion.task import DiffusionTask, is_conditional
from sashimi_diffusion.training.distillation.config import DistillationConfig
from sashimi_diffusion.training.distillation.estimates import Estimator, Teacher
from sashimi_diffusion.training.distillation.students import STUDENTS, DistillationBatch
from sashimi_diffusion.training.examples import DISTILLATION, spread_evenly, stream
from sashimi_diffusion.training.log import evaluation_bar
from sashimi_diffusion.training.model_card import diffusion_usage
from sashimi_diffusion.training.run_folder import Saveable
from sashimi_diffusion.training.splits import with_teacher

_MOST_NOISE = 1000.0  # levels from which the audio in a prediction of the noise is lost


class DistillationTask(DiffusionTask):
    """Distillation; implements :class:`sashimi_diffusion.training.task.Task`. ``network`` contains the student."""

    config: DistillationConfig

    def __init__(self, config: DistillationConfig, device: torch.device, skip_bad_files: bool) -> None:
        super().__init__(config, device, skip_bad_files)
        method, student = config.distillation, self.network
        folder = resolve_pipeline(config.training.initial_pipeline or "")
        self._check_teacher(folder)
        estimator = Estimator(noise_path(self.scheduler).to(device, torch.float32))
        predicts_noise = config.objective.name == "diffusion" and config.schedule.prediction_type == "epsilon"
        if predicts_noise and estimator.path.highest > _MOST_NOISE:
            raise UserError(
                f"the teacher predicts noise (schedule.prediction_type=epsilon) up to a level of noise of "
                f"{estimator.path.highest:.0f} times the audio, where the smallest error hides the audio: distill a "
                "teacher with v_prediction, flow matching or EDM, or with the linear schedule"
            )
        model = copy.deepcopy(student).eval().requires_grad_(False)
        guidance = stored_guidance_scale(folder) if method.guidance_scale is None else method.guidance_scale
        self.teacher = Teacher(model, estimator, guidance)
        self.network = self.module = STUDENTS[method.method](student, estimator, method)
        self.sampler = create_few_step_scheduler(self.scheduler.config, method.steps)
        set_few_steps(self.sampler, method.steps)
        self.starts: Tensor = self.sampler.timesteps
        self.usage = diffusion_usage(student, method.steps)
        self.data = with_teacher(self.data, hash_pipeline(folder))
        parameters = sum(parameter.numel() for parameter in student.parameters())
        self.description += (
            f"; a student of {parameters:,} parameters with {method.steps} sampling steps, guidance {guidance:g} of "
            "the teacher"
        )

    def check_sampling(self) -> None:
        """Do nothing: the student has its own sampler and steps instead of those of ``sampling``."""

    def _check_teacher(self, folder: Path) -> None:
        """Check that the teacher knows the speakers and, for guidance, that it has labels.

        Raises:
            UserError: it does not.
        """
        known = read_json(folder / "model" / "config.json", "the config of the teacher").get("num_speakers")
        if known != self.network.config.num_speakers:
            new = (self.network.config.speaker_names or [])[known or 0 :]
            raise UserError(
                f"the teacher does not know the speaker {short_form(new[0])}: a student learns from its teacher, so "
                "distill with recordings of speakers that it knows"
            )
        scale = self.config.distillation.guidance_scale
        if scale not in (None, 1) and not is_conditional(self.network):
            raise UserError(
                f"distillation.guidance_scale is {scale:g}: the teacher has neither classes nor speakers to guide "
                "towards, so set it to null"
            )

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
        indices = spread_evenly(len(self.validation.dataset), self.config.training.validation_examples)
        batches = [range(start, min(start + size, len(indices))) for start in range(0, len(indices), size)]
        total = torch.zeros((), device=accelerator.device)
        own = batches[accelerator.process_index :: accelerator.num_processes]
        with frozen(network), evaluation_bar("validation", len(own), accelerator.is_main_process) as bar:
            for chosen in own:
                examples = self.validation.validation_batch([indices[position] for position in chosen])
                random = torch.Generator().manual_seed(chosen.start)
                second = torch.randn(examples.waveform.shape, generator=random)
                starts = self.starts[[position % len(self.starts) for position in chosen]]
                with accelerator.autocast():
                    total += network(self._with_starts(examples, starts, second), self.teacher) * len(chosen)
                bar.update()
        return {"validation_loss": accelerator.reduce(total, "sum").item() / len(indices)}

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
