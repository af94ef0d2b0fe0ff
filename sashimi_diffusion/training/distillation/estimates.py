"""What a denoiser says about the clean audio in a noisy waveform, and the teacher with its guidance."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sashimi_diffusion.pipelines.labels import null_labels
from sashimi_diffusion.schedulers.noise_paths import Level, NoisePath, signal_and_deviation

Conditioning = Mapping[str, Tensor | None]
"""The arguments ``class_labels``, ``speaker_labels`` and ``mel`` of a denoiser."""


@dataclass
class Estimator:
    """Noisy waveforms z = α x + σ ε with α² + σ² = 1, and the clean audio in them, for every training objective.

    Args:
        path: noise path of the teacher, on the device of the denoisers.
    """

    path: NoisePath

    def factors(self, timesteps: Tensor) -> Level:
        """Return α and σ, each (B, 1, 1), of timesteps (B,)."""
        return signal_and_deviation(self.path.level(timesteps)[:, None, None])

    def noisy(self, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return z, (B, C, L), for clean audio and noise (B, C, L) and timesteps (B,)."""
        return self.factors(timesteps).of(clean, noise)

    def predict(self, model: Any, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the clean audio that a denoiser estimates, (B, C, L) float32.

        Without noise, it would be z itself for every network: the boundary condition of consistency models.
        """
        level = self.path.level(timesteps)[:, None, None]
        output = model(self.path.model_input(noisy, level), timesteps, **conditioning, return_dict=False)[0].float()
        return self.path.clean(output, noisy, level)


@dataclass
class Teacher:
    """A trained denoiser with classifier-free guidance (arXiv 2207.12598). Its weights do not change.

    Args:
        model: the denoiser.
        estimator: reads the clean audio in its output.
        guidance_scale: scale of the guidance; 1: none.
    """

    model: Any
    estimator: Estimator
    guidance_scale: float

    @torch.no_grad()
    def predict(self, noisy: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the clean audio that the teacher estimates, (B, C, L) float32."""
        labels = {name: own for name, own in conditioning.items() if own is not None and name.endswith("_labels")}
        if self.guidance_scale == 1 or not labels:
            return self.estimator.predict(self.model, noisy, timesteps, conditioning)
        without = {**conditioning, **null_labels(self.model.config, labels)}
        pairs = {
            name: None if own is None or other is None else torch.cat([own, other])
            for (name, own), other in zip(conditioning.items(), (without[name] for name in conditioning), strict=True)
        }
        both = self.estimator.predict(self.model, noisy.repeat(2, 1, 1), timesteps.repeat(2), pairs)
        conditional, unconditional = both.chunk(2)
        return unconditional + self.guidance_scale * (conditional - unconditional)
