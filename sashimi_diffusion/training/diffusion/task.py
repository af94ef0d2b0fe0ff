"""A diffusion run: a denoiser, its noise schedule, and the loss of predicting the noise or the velocity."""

from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers import ModelMixin
from torch import Tensor, nn

from sashimi_diffusion.data.recordings import Recordings
from sashimi_diffusion.pipelines.sashimi import SashimiPipeline
from sashimi_diffusion.training.diffusion.batches import BatchSource, measure_std
from sashimi_diffusion.training.diffusion.components import create_mel, create_model, create_training_scheduler
from sashimi_diffusion.training.diffusion.config import DiffusionConfig
from sashimi_diffusion.training.diffusion.loss import diffusion_losses
from sashimi_diffusion.training.diffusion.samples import check_sampling, save_samples
from sashimi_diffusion.training.examples import spread_evenly
from sashimi_diffusion.training.splits import fingerprint, has_validation, open_split


class DiffusionTask:
    """See :class:`sashimi_diffusion.training.task.Task`."""

    chunks = 1

    def __init__(self, config: DiffusionConfig, device: torch.device, skip_bad_files: bool) -> None:
        self.config, self.samples = config, config.sampling.num_samples
        recordings = self._open("train", skip_bad_files)
        held_out = self._open("validation", skip_bad_files) if has_validation(config.data) else None
        if config.model.arguments.get("waveform_std", 1.0) is None:
            config.model.arguments["waveform_std"] = round(measure_std(recordings, config), 6)
        model = create_model(config, recordings.class_names, recordings.speaker_names)
        self.network = self.module = model.to(device)
        self.scheduler = create_training_scheduler(config)
        check_sampling(config.sampling, self.network, self.scheduler)
        self.source = self._batch_source(recordings, device)
        self.validation = None if held_out is None else self._batch_source(held_out, device)
        self.data = fingerprint(recordings)
        self.description = (
            f"{len(recordings):,} training and {0 if held_out is None else len(held_out):,} held-out examples"
        )

    def loss(self, module: nn.Module, step: int, positions: range, global_batch: int) -> Tensor:
        """The mean loss of the examples at ``positions``."""
        batch = self.source.training_batch(step, positions, global_batch)
        return diffusion_losses(module, self.scheduler, batch, self.config.objective.min_snr_gamma).mean()

    @torch.no_grad()
    def validate(self, accelerator: Accelerator, network: ModelMixin) -> dict[str, float]:
        """Mean loss of held-out recordings, shared among the processes.

        Each example has noise and a timestep of its own that depend on nothing but the run's seed, so the figures of a
        run can be compared with each other.
        """
        if self.validation is None:
            return {}
        training = self.config.training
        indices = spread_evenly(len(self.validation.dataset), training.validation_examples)
        batches = [
            indices[start : start + training.batch_size] for start in range(0, len(indices), training.batch_size)
        ]
        total = torch.zeros((), device=accelerator.device)
        for chosen in batches[accelerator.process_index :: accelerator.num_processes]:
            batch = self.validation.validation_batch(chosen)
            with accelerator.autocast():
                losses = diffusion_losses(network, self.scheduler, batch, self.config.objective.min_snr_gamma)
            total += losses.sum()
        return {"validation_loss": accelerator.reduce(total, "sum").item() / len(indices)}

    def conclude(self, accelerator: Accelerator, network: ModelMixin) -> dict[str, float]:
        """Nothing: the last validation has said it."""
        return {}

    def pipeline(self, network: ModelMixin) -> SashimiPipeline:
        """The denoiser with its training schedule, and the guidance that samples are drawn with."""
        return SashimiPipeline(network, self.scheduler, self.config.sampling.guidance_scale)

    def save_samples(self, run: Path, step: int, network: ModelMixin) -> str:
        """Draw samples; a vocoder re-synthesises held-out recordings."""
        return save_samples(run, step, network, self.scheduler, self.config.sampling, self.validation or self.source)

    def _open(self, split: str, skip_bad_files: bool) -> Recordings:
        data = self.config.data
        recordings = open_split(data, split, data.length, skip_bad_files, data.speakers)
        recordings.normalize_rms = data.normalize_rms
        return recordings

    def _batch_source(self, recordings: Recordings, device: torch.device) -> BatchSource:
        model = self.network
        return BatchSource(
            recordings,
            self.config,
            waveform_std=model.config.waveform_std,
            num_classes=model.config.num_classes,
            mel=create_mel(self.config, model),
            device=device,
            num_speakers=model.config.num_speakers,
        )
