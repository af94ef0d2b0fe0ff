"""The recurrence of a SaShiMi model in one Triton kernel, which generates many samples per launch. See README.md."""

from sashimi_diffusion.generation.triton_engine.engine import TritonEngine
from sashimi_diffusion.generation.triton_engine.tiles import MAX_TOKENS

__all__ = ["MAX_TOKENS", "TritonEngine"]
