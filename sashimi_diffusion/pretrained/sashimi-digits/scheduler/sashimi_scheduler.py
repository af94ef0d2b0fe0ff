"""Part of a sashimi-diffusion pipeline; needs the package (pip install sashimi-diffusion)."""

from sashimi_diffusion.schedulers import DiffWaveScheduler

__all__ = ["DiffWaveScheduler"]
