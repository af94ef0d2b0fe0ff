"""A SaShiMi model's whole recurrent step compiled for the CPU; needs numba (extra ``fast``)."""

from sashimi_diffusion.generation.numba_engine.engine import NumbaEngine

__all__ = ["NumbaEngine"]
