"""Noise schedules and samplers: DiffWave's, and those of diffusers with settings for audio."""

from sashimi_diffusion.schedulers.compatible import SCHEDULERS, create_scheduler
from sashimi_diffusion.schedulers.diffwave import FAST_BETAS_50, FAST_BETAS_200, DiffWaveScheduler
from sashimi_diffusion.schedulers.linear_multistep import LinearMultistepScheduler

__all__ = [
    "FAST_BETAS_50",
    "FAST_BETAS_200",
    "SCHEDULERS",
    "DiffWaveScheduler",
    "LinearMultistepScheduler",
    "create_scheduler",
]
