"""Triton kernels for CUDA and ROCm devices, and for CPU tensors in Triton's interpreter."""

from sashimi_kernels.triton_backend.channel_norm import layer_norm, scalar_norm
from sashimi_kernels.triton_backend.chunk_operators import chunk_operators
from sashimi_kernels.triton_backend.chunked_convolution import chunked_convolution
from sashimi_kernels.triton_backend.diagonal import diagonal_kernel, diagonal_state
from sashimi_kernels.triton_backend.feed_forward import feed_forward
from sashimi_kernels.triton_backend.gated_linear import gated_linear
from sashimi_kernels.triton_backend.gated_residual import gated_residual
from sashimi_kernels.triton_backend.nplr import nplr_kernel
from sashimi_kernels.triton_backend.nplr_recurrence import nplr_state
from sashimi_kernels.triton_backend.recurrence import diagonal_step, nplr_step

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
