"""Autoregressive generation of audio: engines, sampling, streaming."""

from sashimi_diffusion.generation.engines import ENGINES, create_engine
from sashimi_diffusion.generation.generate import Generation, check_memory, generate, stream
from sashimi_diffusion.generation.sampling import Sampling, sample_tokens

__all__ = ["ENGINES", "Generation", "Sampling", "check_memory", "create_engine", "generate", "sample_tokens", "stream"]
