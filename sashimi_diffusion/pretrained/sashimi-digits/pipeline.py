"""Part of a sashimi-diffusion pipeline; needs the package (pip install sashimi-diffusion)."""

from sashimi_diffusion.pipelines import SashimiPipeline

__all__ = ["SashimiPipeline"]
