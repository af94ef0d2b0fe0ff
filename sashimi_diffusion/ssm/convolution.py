"""Convolution with a kernel that depends on parameters alone, and is kept in evaluation mode."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sashimi_diffusion.ssm.cache import ParameterCache
from sashimi_kernels import lags_spectrum, long_convolution, spectrum_convolution


def convolve(module: nn.Module, cache: ParameterCache, u: Tensor, make_lags: Callable[[], Tensor]) -> Tensor:
    """Convolve ``u`` (batch, H, L) with the kernels of ``module``: (batch, channels, H, L).

    Args:
        module: owner of the parameters that the kernels depend on.
        cache: keeps the spectrum of the kernels while those parameters stay.
        u: signal in the precision of the kernels.
        make_lags: makes what :func:`sashimi_kernels.kernel_lags` returns for this length, real (channels, H, size).
    """
    signal = u.unsqueeze(1)  # (batch, 1, H, L)
    if module.training or torch.is_grad_enabled():
        return long_convolution(signal, make_lags())
    spectrum = cache.get(module, u.shape[-1], lambda: lags_spectrum(make_lags()))
    return spectrum_convolution(signal, spectrum)
