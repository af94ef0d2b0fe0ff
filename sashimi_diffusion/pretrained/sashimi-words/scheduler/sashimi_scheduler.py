"""Part of a sashimi-diffusion pipeline; needs the Python package sashimi-diffusion."""

from sashimi_diffusion.schedulers import DiffWaveScheduler

__all__ = ["DiffWaveScheduler"]
