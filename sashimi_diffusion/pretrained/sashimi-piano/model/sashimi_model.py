"""Part of a sashimi-diffusion pipeline; needs the Python package sashimi-diffusion."""

from sashimi_diffusion.models import SashimiAutoregressive

__all__ = ["SashimiAutoregressive"]
