"""State-space convolution kernels: one interface, several backends.

=======================  ==================================================================================
``diagonal_kernel``      convolution kernel of a diagonal state space (S4D)
``nplr_kernel``          convolution kernel of a normal-plus-low-rank state space (S4)
``diagonal_state``       state of a diagonal state space after an input, without stepping through it
``nplr_state``           the same for a normal-plus-low-rank one
``diagonal_step``        one step of a diagonal state space, as a recurrence
``nplr_step``            the same for a normal-plus-low-rank one
``chunked_convolution``  convolution with a diagonal system by matrix products, from and to a state
``long_convolution``     convolution with a kernel of any length (``kernel_lags``), one or both directions, by FFT
``scalar_norm``          norm over the channels with one gain and one shift, and a bias
``layer_norm``           norm over the channels with a weight and an offset for each, and a bias
``gated_residual``       gated linear unit added to a residual
=======================  ==================================================================================

Every state space is kept as half of its conjugate pairs: complex tensors of N states stand for 2N.
"""

from sashimi_kernels.backends import available_backends, backend_name
from sashimi_kernels.channelwise import gated_residual, layer_norm, scalar_norm
from sashimi_kernels.convolution import chunked_convolution
from sashimi_kernels.discretization import (
    DiscreteDiagonal,
    DiscreteNPLR,
    discretize_diagonal,
    discretize_nplr,
)
from sashimi_kernels.errors import BackendUnavailableError
from sashimi_kernels.fourier import fft_length, kernel_lags, lags_spectrum, long_convolution, spectrum_convolution
from sashimi_kernels.generation import diagonal_kernel, diagonal_state, nplr_kernel, nplr_state
from sashimi_kernels.recurrence import diagonal_step, nplr_step

__all__ = [
    "BackendUnavailableError",
    "DiscreteDiagonal",
    "DiscreteNPLR",
    "available_backends",
    "backend_name",
    "chunked_convolution",
    "diagonal_kernel",
    "diagonal_state",
    "diagonal_step",
    "discretize_diagonal",
    "discretize_nplr",
    "fft_length",
    "gated_residual",
    "kernel_lags",
    "lags_spectrum",
    "layer_norm",
    "long_convolution",
    "nplr_kernel",
    "nplr_state",
    "nplr_step",
    "scalar_norm",
    "spectrum_convolution",
]
