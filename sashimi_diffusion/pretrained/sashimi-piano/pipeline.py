"""Part of a sashimi-diffusion pipeline; needs the Python package sashimi-diffusion."""

from sashimi_diffusion.pipelines import SashimiAutoregressivePipeline

__all__ = ["SashimiAutoregressivePipeline"]
