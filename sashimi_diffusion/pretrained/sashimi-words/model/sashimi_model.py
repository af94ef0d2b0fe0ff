"""Part of a sashimi-diffusion pipeline; needs the Python package sashimi-diffusion."""

from sashimi_diffusion.models import SashimiDenoiser

__all__ = ["SashimiDenoiser"]
