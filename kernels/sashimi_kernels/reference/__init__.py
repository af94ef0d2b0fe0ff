"""The definitions, written for reading and checking: slow, hungry for memory, right in any dtype."""

from sashimi_kernels.reference.generation import diagonal_kernel, diagonal_state, nplr_kernel, nplr_state

__all__ = ["diagonal_kernel", "diagonal_state", "nplr_kernel", "nplr_state"]
