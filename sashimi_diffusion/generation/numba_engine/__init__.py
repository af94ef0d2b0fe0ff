"""The recurrence of a SaShiMi model, compiled for the CPU; it needs numba (extra ``fast``). See README.md."""

from sashimi_diffusion.generation.numba_engine.engine import NumbaEngine

__all__ = ["NumbaEngine"]
