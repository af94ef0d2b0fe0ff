"""Reference implementations: the defining equations in plain PyTorch, in any dtype, without optimization."""

from sashimi_kernels.reference.channelwise import gated_residual, layer_norm, scalar_norm
from sashimi_kernels.reference.convolution import chunk_operators, chunked_convolution
from sashimi_kernels.reference.generation import diagonal_kernel, diagonal_state, nplr_kernel, nplr_state
from sashimi_kernels.reference.pointwise import feed_forward, gated_linear
from sashimi_kernels.reference.recurrence import diagonal_step, nplr_step

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
