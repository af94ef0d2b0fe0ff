"""Fast implementations in plain PyTorch, on any device."""

from sashimi_kernels.torch_backend.generation import diagonal_kernel, diagonal_state, nplr_kernel, nplr_state

__all__ = ["diagonal_kernel", "diagonal_state", "nplr_kernel", "nplr_state"]
