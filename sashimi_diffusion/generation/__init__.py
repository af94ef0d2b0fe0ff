"""Making audio sample by sample with an autoregressive model: engines, sampling, streaming."""

from sashimi_diffusion.generation.engines import ENGINES, create_engine
from sashimi_diffusion.generation.generate import Generation, generate, stream
from sashimi_diffusion.generation.sampling import Sampling, choose

__all__ = ["ENGINES", "Generation", "Sampling", "choose", "create_engine", "generate", "stream"]
