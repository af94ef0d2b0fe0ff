"""A denoiser of Gaussian waveforms that is exact, so that the distribution of what a pipeline returns is known."""

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor

from sashimi_diffusion.models import DenoiserOutput
from sashimi_diffusion.pipelines import SashimiPipeline
from sashimi_diffusion.schedulers import DiffWaveScheduler, create_scheduler
from sashimi_diffusion.schedulers.levels import noise_levels

COSINE = DiffWaveScheduler(200, beta_schedule="squaredcos_cap_v2")


class ExactDenoiser(ModelMixin, ConfigMixin):
    """Predicts eps for x = a x_0 + s eps, where x_0 is a Gaussian process: eps = s (a^2 C + s^2)^-1 x.

    Args:
        correlation: rho of the covariance C[i, j] = rho^|i - j| (an AR(1) process); 0 is white noise.
        sample_size: training length.
    """

    length_multiple = 1

    @register_to_config
    def __init__(
        self,
        correlation: float = 0.0,
        sample_size: int = 16,
        in_channels: int = 1,
        sample_rate: int = 100,
        waveform_std: float = 0.5,
        pre_emphasis: float = 0.0,
    ) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.lengths: list[tuple[int, ...]] = []
        self._levels = np.log(noise_levels(COSINE.alphas_cumprod))

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None, mel: None = None):
        self.lengths.append(tuple(sample.shape))
        sigma = float(np.exp(np.interp(float(timestep[0]), np.arange(len(self._levels)), self._levels)))
        signal = 1 / (1 + sigma**2)
        covariance = covariance_of(self.config.correlation, sample.shape[-1])
        total = signal * covariance + (1 - signal) * torch.eye(sample.shape[-1])
        return DenoiserOutput(sample=(1 - signal) ** 0.5 * torch.linalg.solve(total, sample.mT).mT)


def covariance_of(correlation: float, length: int) -> Tensor:
    places = torch.arange(length)
    return correlation ** (places[:, None] - places[None]).abs().float()


def exact_pipeline(scheduler: str = "diffwave", **options: object) -> SashimiPipeline:
    pipe = SashimiPipeline(ExactDenoiser(**options), create_scheduler(scheduler, COSINE.config))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def process(count: int, correlation: float, length: int, seed: int = 1) -> Tensor:
    """Return waveforms (count, 1, length) of the process with the standard deviation 0.5."""
    factor = torch.linalg.cholesky(covariance_of(correlation, length))
    return 0.5 * torch.randn(count, 1, length, generator=seeded(seed)) @ factor.mT
