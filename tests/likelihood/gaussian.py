"""A Gaussian process with a known density, and the exact denoiser of it for every training objective."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import FrozenDict
from torch import Tensor, nn

from sashimi_diffusion.pipelines import SashimiPipeline
from sashimi_diffusion.schedulers.noise_paths import objective_of

LENGTH = 32


def covariance(correlation: float, power: float = 1.0) -> Tensor:
    """Return the covariance of a stationary AR(1) process, float64 (LENGTH, LENGTH)."""
    positions = torch.arange(LENGTH, dtype=torch.float64)
    return power * correlation ** (positions - positions[:, None]).abs()


class ExactDenoiser(nn.Module):
    """The denoiser with the least error for a normal distribution.

    Args:
        scheduler: gives the levels of the timesteps and the kind of the prediction.
        process: covariance of the waveforms as the diffusion sees them, (L, L).
        **config: entries of the config of the model.
    """

    def __init__(self, scheduler: Any, process: Tensor, **config: Any) -> None:
        super().__init__()
        self.scheduler = scheduler
        self.powers, self.basis = torch.linalg.eigh(process)
        objective = objective_of(scheduler)
        labels = {"num_classes": None, "num_speakers": None}
        self.config = FrozenDict(in_channels=1, waveform_std=1.0, objective=objective, **labels, **config)
        self.length_multiple, self.dtype, self.device = 1, torch.float32, torch.device("cpu")

    def level(self, timestep: Tensor) -> Tensor:
        """Return the noise level of a timestep."""
        name, config = type(self.scheduler).__name__, self.scheduler.config
        if name.startswith("FlowMatch"):
            time = (timestep.double() / config.num_train_timesteps).clamp(max=1 - 1e-6)
            return time / (1 - time)
        if name.startswith("EDM"):
            return torch.exp(4 * timestep.double())
        if config.beta_schedule == "squaredcos_cap_v2":
            time = ((timestep.double() + 1) / config.num_train_timesteps + 0.008) / 1.008
            signal = torch.cos(time * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)
            return (signal**-2 - 1).sqrt()
        signal = self.scheduler.alphas_cumprod.double().numpy()
        logs = np.log((1 - signal) / signal) / 2
        return torch.from_numpy(np.exp(np.interp(timestep.double().numpy(), np.arange(len(logs)), logs)))

    def forward(self, sample: Tensor, timestep: Tensor, mel: None = None) -> SimpleNamespace:
        level = self.level(timestep).reshape(-1, 1, 1)
        name, x = type(self.scheduler).__name__, sample.double()
        scale = (1 + level**2).sqrt()
        # The others preserve the variance, also EDM with sigma_data = 1.
        x = x * (1 + level) if name.startswith("FlowMatch") else x * scale
        clean = (x @ self.basis * (self.powers / (self.powers + level**2))) @ self.basis.T
        noise = (x - clean) / level
        if name.startswith("FlowMatch"):
            output = noise - clean
        elif name.startswith("EDM"):
            output = (clean - x / scale**2) * scale / level
        else:
            velocity = (noise - level * clean) / scale
            output = velocity if self.scheduler.config.prediction_type == "v_prediction" else noise
        return SimpleNamespace(sample=output.to(sample))


def exact_pipeline(scheduler: Any, process: Tensor, **config: Any) -> SashimiPipeline:
    """Return a pipeline with the exact denoiser of a process."""
    pipe = SashimiPipeline.__new__(SashimiPipeline)
    pipe.__dict__["_internal_dict"] = FrozenDict()
    object.__setattr__(pipe, "model", ExactDenoiser(scheduler, process, **config))
    object.__setattr__(pipe, "scheduler", scheduler)
    return pipe


def draw(process: Tensor, count: int, seed: int = 0) -> Tensor:
    """Return waveforms of a process, float64 (count, 1, L)."""
    noise = torch.randn(count, LENGTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (noise @ torch.linalg.cholesky(process).T).unsqueeze(1)


def exact_bits(audio: Tensor, process: Tensor, step: float) -> Tensor:
    """Return -log2 density per sample of quantized waveforms with a step, float64 (B,)."""
    normal = torch.distributions.MultivariateNormal(torch.zeros(LENGTH, dtype=torch.float64), process)
    return -(normal.log_prob(audio.squeeze(1)) / LENGTH + math.log(step)) / math.log(2)
