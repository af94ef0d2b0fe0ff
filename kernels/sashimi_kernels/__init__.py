"""State-space kernels and long convolutions in PyTorch and Triton, with one function per operation.

=======================  ==================================================================================
``diagonal_kernel``      convolution kernel of a diagonal state space (S4D)
``nplr_kernel``          convolution kernel of a normal-plus-low-rank state space (S4)
``diagonal_state``       state of a diagonal state space after an input
``nplr_state``           the same for a normal-plus-low-rank state space
``diagonal_step``        one recurrence step of a diagonal state space
``nplr_step``            the same for a normal-plus-low-rank state space
``chunk_operators``      matrices of a state space, of either kind, for chunks of samples
``chunked_convolution``  convolution with a state space by products with these matrices
``long_convolution``     convolution with kernels of any length (``kernel_lags``) by FFT
``scalar_norm``          norm over the channels with one gain and one shift, plus a bias
``layer_norm``           norm over the channels with a weight and an offset per channel, plus a bias
``gated_residual``       gated linear unit added to a residual
``pointwise``            linear map of the channels
``gated_linear``         GELU, linear map and gated linear unit, added to a residual
``feed_forward``         norm, linear map, GELU and linear map, added to the input
=======================  ==================================================================================

State spaces are represented by half of their conjugate pairs: complex tensors of N states represent 2N states.
"""

from sashimi_kernels.backends import available_backends, backend_name
from sashimi_kernels.channelwise import gated_residual, layer_norm, norm_and_residual, scalar_norm
from sashimi_kernels.chunks import ChunkOperators
from sashimi_kernels.convolution import chunk_operators, chunked_convolution
from sashimi_kernels.discretization import (
    DiscreteDiagonal,
    DiscreteNPLR,
    discretize_diagonal,
    discretize_nplr,
)
from sashimi_kernels.errors import BackendUnavailableError
from sashimi_kernels.fourier import fft_length, kernel_lags, lags_spectrum, long_convolution, spectrum_convolution
from sashimi_kernels.generation import diagonal_kernel, diagonal_state, nplr_kernel, nplr_state
from sashimi_kernels.pointwise import feed_forward, gated_linear, pointwise
from sashimi_kernels.recurrence import diagonal_step, nplr_step

__all__ = [
    "BackendUnavailableError",
    "ChunkOperators",
    "DiscreteDiagonal",
    "DiscreteNPLR",
    "available_backends",
    "backend_name",
    "chunk_operators",
    "chunked_convolution",
    "diagonal_kernel",
    "diagonal_state",
    "diagonal_step",
    "discretize_diagonal",
    "discretize_nplr",
    "feed_forward",
    "fft_length",
    "gated_linear",
    "gated_residual",
    "kernel_lags",
    "lags_spectrum",
    "layer_norm",
    "long_convolution",
    "norm_and_residual",
    "nplr_kernel",
    "nplr_state",
    "nplr_step",
    "pointwise",
    "scalar_norm",
    "spectrum_convolution",
]
