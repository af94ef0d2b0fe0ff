"""State-space convolution kernels: one interface, several backends.

=====================  ==================================================================================
``diagonal_kernel``    convolution kernel of a diagonal state space (S4D)
``nplr_kernel``        convolution kernel of a normal-plus-low-rank state space (S4)
``diagonal_state``     state of a diagonal state space after an input, without stepping through it
``nplr_state``         the same for a normal-plus-low-rank one
``fft_convolve``       convolution with a precomputed kernel spectrum (``kernel_spectrum``), one or both directions
=====================  ==================================================================================

Every state space is kept as half of its conjugate pairs: complex tensors of N states stand for 2N.
"""

from sashimi_kernels.backends import BackendUnavailableError, available_backends
from sashimi_kernels.convolution import fft_convolve, fft_length, kernel_spectrum
from sashimi_kernels.discretization import (
    DiscreteDiagonal,
    DiscreteNPLR,
    discretize_diagonal,
    discretize_nplr,
)
from sashimi_kernels.generation import diagonal_kernel, diagonal_state, nplr_kernel, nplr_state

__all__ = [
    "BackendUnavailableError",
    "DiscreteDiagonal",
    "DiscreteNPLR",
    "available_backends",
    "diagonal_kernel",
    "diagonal_state",
    "discretize_diagonal",
    "discretize_nplr",
    "fft_convolve",
    "fft_length",
    "kernel_spectrum",
    "nplr_kernel",
    "nplr_state",
]
