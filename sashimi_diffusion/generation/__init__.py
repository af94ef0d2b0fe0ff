"""Autoregressive generation of audio: engines, sampling, streaming."""

from sashimi_diffusion.generation.engines import ENGINES, WEIGHTS, create_engine, engine_name, require_weights
from sashimi_diffusion.generation.generate import Generation, check_memory, generate, stream
from sashimi_diffusion.generation.sampling import Sampling, sample_tokens

__all__ = [
    "ENGINES",
    "WEIGHTS",
    "Generation",
    "Sampling",
    "check_memory",
    "create_engine",
    "engine_name",
    "generate",
    "require_weights",
    "sample_tokens",
    "stream",
]
