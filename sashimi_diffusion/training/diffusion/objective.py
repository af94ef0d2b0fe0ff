"""The training objective: the scheduler of a run, and the noise levels of its examples."""

import math
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import Tensor

from sashimi_diffusion.schedulers.diffwave import DiffWaveScheduler
from sashimi_diffusion.schedulers.noise_paths import noise_path
from sashimi_diffusion.training.diffusion.config import DiffusionConfig

TIME_BINS = 10
"""Parts of the range of times for which the validation loss is logged."""

_LEAST_SHARE = 1e-6  # of the examples at either end of a normal distribution


def training_scheduler(config: DiffusionConfig) -> Any:
    """Return the scheduler of a run, which the pipeline is saved with.

    The recordings have unit variance, so ``sigma_data`` of EDM is 1.
    """
    steps = config.schedule.num_train_timesteps
    if config.objective.name == "flow":
        return diffusers.FlowMatchEulerDiscreteScheduler(num_train_timesteps=steps)
    if config.objective.name == "edm":
        return diffusers.EDMDPMSolverMultistepScheduler(num_train_timesteps=steps, sigma_data=1.0)
    return DiffWaveScheduler(**config.schedule.model_dump())


def training_timesteps(config: DiffusionConfig) -> Callable[[Tensor], Tensor]:
    """Return the function from uniform numbers in [0, 1), float64 (B,), to timesteps of the network, (B,).

    For "diffusion", they are whole numbers of equal shares. For "flow" and "edm", the logarithm of the noise level is
    normal; with flow matching, its time is then logit-normal.
    """
    objective = config.objective
    if objective.name == "diffusion":
        return lambda shares: (shares * config.schedule.num_train_timesteps).long()
    path, (mean, std) = noise_path(training_scheduler(config)), objective.distribution

    def timesteps(shares: Tensor) -> Tensor:
        level = torch.exp(mean + std * torch.special.ndtri(shares.clamp(_LEAST_SHARE, 1 - _LEAST_SHARE)))
        return path.timestep(level).float()

    return timesteps


def time_bins(config: DiffusionConfig, timesteps: Tensor) -> Tensor:
    """Return which of ``TIME_BINS`` equal parts of the times a timestep is in, int64 (B,), from little noise to much.

    The time is t / T for "diffusion" and "flow", and the share of the examples with less noise for "edm".
    """
    if config.objective.name == "edm":
        mean, std = config.objective.distribution
        times = torch.special.ndtr((timesteps.double() * 4 - mean) / std)
    else:
        times = timesteps.double() / config.schedule.num_train_timesteps
    return (times * TIME_BINS).long().clamp(0, TIME_BINS - 1)


def loss_curve(losses: Tensor, counts: Tensor) -> dict[str, float]:
    """Return the mean loss of each part of the times that has examples, by a name for the log.

    Args:
        losses: sum of the losses in each part, (TIME_BINS,).
        counts: examples in each part, (TIME_BINS,).
    """
    return {
        f"validation_loss/time_{part / TIME_BINS:.1f}": loss / count
        for part, (loss, count) in enumerate(zip(losses.tolist(), counts.tolist(), strict=True))
        if count and math.isfinite(loss)
    }
