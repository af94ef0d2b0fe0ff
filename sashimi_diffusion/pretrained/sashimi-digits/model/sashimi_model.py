"""Part of a sashimi-diffusion pipeline; needs the package (pip install sashimi-diffusion)."""

from sashimi_diffusion.models import SashimiDenoiser

__all__ = ["SashimiDenoiser"]
