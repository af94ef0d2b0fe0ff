"""Optimized implementations in plain PyTorch, for any device."""

from sashimi_kernels.torch_backend.channelwise import gated_residual, layer_norm, scalar_norm
from sashimi_kernels.torch_backend.chunk_operators import chunk_operators
from sashimi_kernels.torch_backend.convolution import chunked_convolution
from sashimi_kernels.torch_backend.generation import diagonal_kernel, diagonal_state, nplr_kernel, nplr_state
from sashimi_kernels.torch_backend.pointwise import feed_forward, gated_linear
from sashimi_kernels.torch_backend.recurrence import diagonal_step, nplr_step

__all__ = [
    "chunk_operators",
    "chunked_convolution",
    "diagonal_kernel",
    "diagonal_state",
    "diagonal_step",
    "feed_forward",
    "gated_linear",
    "gated_residual",
    "layer_norm",
    "nplr_kernel",
    "nplr_state",
    "nplr_step",
    "scalar_norm",
]
