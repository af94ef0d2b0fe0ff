"""Pipelines: load a trained model and generate audio with it."""

from sashimi_diffusion.pipelines.auto import AutoPipeline
from sashimi_diffusion.pipelines.autoregressive import AutoregressivePipelineOutput, SashimiAutoregressivePipeline
from sashimi_diffusion.pipelines.base import sample_generators, sample_seeds
from sashimi_diffusion.pipelines.loading import hash_pipeline, is_autoregressive, resolve_pipeline
from sashimi_diffusion.pipelines.sashimi import SashimiPipeline
from sashimi_diffusion.pipelines.vocoding import resynthesize, vocode

__all__ = [
    "AutoPipeline",
    "AutoregressivePipelineOutput",
    "SashimiAutoregressivePipeline",
    "SashimiPipeline",
    "hash_pipeline",
    "is_autoregressive",
    "resolve_pipeline",
    "resynthesize",
    "sample_generators",
    "sample_seeds",
    "vocode",
]
