"""Long convolutions through the FFT, with the kernel's spectrum computed apart so that it can be kept."""

import torch
from torch import Tensor


def fft_length(length: int) -> int:
    """Smallest 5-smooth FFT size that convolves two signals of ``length`` samples without wrapping round."""
    size = 2 * length
    while True:
        rest = size
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return size
        size += 1


def kernel_spectrum(
    kernel: Tensor, skip: Tensor | None = None, reverse: Tensor | None = None, shift: int = 1
) -> Tensor:
    """Spectrum of a convolution kernel, with the other direction and the skip connection folded in.

    It stands for y[t] = skip · u[t] + Σ_j kernel[j] u[t-j] + Σ_j reverse[j] u[t+shift+j].

    Args:
        kernel: causal kernel, real (..., L).
        skip: D of the state space, real (...), added at lag zero.
        reverse: kernel of the reverse direction, real (..., L).
        shift: 1 when the reverse direction starts at the next sample (newer official code), 0 when both directions
            include the present one (older official code).

    Returns:
        complex (..., fft_length(L) // 2 + 1).
    """
    length = kernel.shape[-1]
    size = fft_length(length)
    lags = torch.nn.functional.pad(kernel, (0, size - length))
    if reverse is not None:
        negative = torch.nn.functional.pad(reverse, (0, size - length)).flip(-1)  # lag -j at index size - 1 - j
        lags = lags + negative.roll(1 - shift, dims=-1)
    spectrum = torch.fft.rfft(lags)
    # A unit impulse has a spectrum of ones.
    return spectrum if skip is None else spectrum + skip.unsqueeze(-1)


def fft_convolve(u: Tensor, spectrum: Tensor) -> Tensor:
    """Convolve real ``u`` (..., L) with the kernel of ``spectrum``; leading axes broadcast. Returns real (..., L)."""
    length = u.shape[-1]
    size = fft_length(length)
    return torch.fft.irfft(torch.fft.rfft(u, n=size) * spectrum, n=size)[..., :length]
