"""What a denoiser says about the clean audio in a noisy waveform, and the teacher with its guidance."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sashimi_diffusion.pipelines.labels import null_labels
from sashimi_diffusion.schedulers.diffwave import DiffWaveScheduler

_SMALLEST_SIGNAL = 1e-3

Conditioning = Mapping[str, Tensor | None]
"""The arguments ``class_labels``, ``speaker_labels`` and ``mel`` of a denoiser."""


@dataclass
class Schedule:
    """The noise schedule: a noisy waveform is z_t = α_t x + σ_t ε, with α_t² + σ_t² = 1.

    Args:
        scheduler: the training schedule of the teacher.
    """

    scheduler: DiffWaveScheduler

    def factors(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return α and σ, each (B, 1, 1), of timesteps (B,); at timestep -1, they are 1 and 0."""
        cumulative = self.scheduler.noise_levels(timesteps.clamp(min=0))
        cumulative = torch.where(timesteps < 0, 1.0, cumulative)[:, None, None]
        return cumulative.sqrt(), (1 - cumulative).sqrt()

    def noisy(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return z_t, (B, C, L), for clean audio and noise (B, C, L) and timesteps (B,)."""
        signal, deviation = self.factors(timesteps)
        return signal * clean + deviation * noise

    def clean(self, prediction: Tensor, noisy: Tensor, timesteps: Tensor) -> Tensor:
        """Return the clean audio (B, C, L) that a prediction of the noise or the velocity stands for.

        For the velocity v = α ε - σ x, it is α z - σ v, which is z itself without noise: the boundary condition of
        consistency models holds for every network.
        """
        signal, deviation = self.factors(timesteps)
        if self.scheduler.config.prediction_type == "v_prediction":
            return signal * noisy - deviation * prediction
        return (noisy - deviation * prediction) / signal.clamp(min=_SMALLEST_SIGNAL)

    def predict(self, model: Any, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the clean audio that a denoiser estimates, (B, C, L) float32."""
        prediction = model(noisy, timesteps, **conditioning, return_dict=False)[0].float()
        return self.clean(prediction, noisy, timesteps)


@dataclass
class Teacher:
    """A trained denoiser with classifier-free guidance (arXiv 2207.12598). Its weights do not change.

    Args:
        model: the denoiser.
        schedule: its noise schedule.
        guidance_scale: scale of the guidance; 1: none.
    """

    model: Any
    schedule: Schedule
    guidance_scale: float

    @torch.no_grad()
    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the clean audio that the teacher estimates, (B, C, L) float32."""
        labels = {name: own for name, own in conditioning.items() if own is not None and name.endswith("_labels")}
        if self.guidance_scale == 1 or not labels:
            return self.schedule.predict(self.model, noisy, timesteps, conditioning)
        without = {**conditioning, **null_labels(self.model.config, labels)}
        pairs = {
            name: None if own is None or other is None else torch.cat([own, other])
            for (name, own), other in zip(conditioning.items(), (without[name] for name in conditioning), strict=True)
        }
        both = self.schedule.predict(self.model, noisy.repeat(2, 1, 1), timesteps.repeat(2), pairs)
        conditional, unconditional = both.chunk(2)
        return unconditional + self.guidance_scale * (conditional - unconditional)
