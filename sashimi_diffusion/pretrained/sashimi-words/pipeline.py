"""Part of a sashimi-diffusion pipeline; needs the Python package sashimi-diffusion."""

from sashimi_diffusion.pipelines import SashimiPipeline

__all__ = ["SashimiPipeline"]
