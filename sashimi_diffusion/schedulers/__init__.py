"""Noise schedules and samplers: DiffWave's, and those of diffusers with settings for audio."""

from sashimi_diffusion.schedulers.compatible import (
    EDM_SCHEDULERS,
    FLOW_SCHEDULERS,
    SCHEDULERS,
    create_scheduler,
    fitting_schedulers,
)
from sashimi_diffusion.schedulers.diffwave import FAST_BETAS_50, FAST_BETAS_200, DiffWaveScheduler
from sashimi_diffusion.schedulers.linear_multistep import LinearMultistepScheduler

__all__ = [
    "EDM_SCHEDULERS",
    "FAST_BETAS_50",
    "FAST_BETAS_200",
    "FLOW_SCHEDULERS",
    "SCHEDULERS",
    "DiffWaveScheduler",
    "LinearMultistepScheduler",
    "create_scheduler",
    "fitting_schedulers",
]
