"""Long convolutions through the FFT."""

from typing import Any

import torch
from torch import Tensor

_PIECE = 2**17  # numbers, half a megabyte of float32


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


def kernel_lags(kernel: Tensor, skip: Tensor | None = None, reverse: Tensor | None = None, shift: int = 1) -> Tensor:
    """A convolution kernel laid out for the FFT, with the other direction and the skip connection folded in.

    It stands for y[t] = skip · u[t] + Σ_j kernel[j] u[t-j] + Σ_j reverse[j] u[t+shift+j].

    Args:
        kernel: causal kernel, real (..., L).
        skip: D of the state space, real (...), added at lag zero.
        reverse: kernel of the reverse direction, real (..., L).
        shift: 1 when the reverse direction starts at the next sample (newer official code), 0 when both directions
            include the present one (older official code).

    Returns:
        real (..., fft_length(L)): the lags 0, 1, … and, from the end backwards, -1, -2, …
    """
    length = kernel.shape[-1]
    present = kernel[..., :1]
    if skip is not None:
        present = present + skip.unsqueeze(-1)
    backward = kernel[..., :0] if reverse is None else reverse
    if reverse is not None and shift == 0:
        present, backward = present + reverse[..., :1], reverse[..., 1:]
    gap = kernel.new_zeros(*kernel.shape[:-1], fft_length(length) - length - backward.shape[-1])
    return torch.cat([present, kernel[..., 1:], gap, backward.flip(-1)], dim=-1)


def long_convolution(u: Tensor, lags: Tensor) -> Tensor:
    """Convolve real ``u`` (batch, 1, H, L) with ``lags``, real (channels, H, size) from :func:`kernel_lags`.

    Its backward pass is three real transforms, where PyTorch's own has complex ones of twice the work.

    Returns:
        real (batch, channels, H, L).
    """
    return _LongConvolution.apply(u, lags)


def spectrum_convolution(u: Tensor, spectrum: Tensor) -> Tensor:
    """:func:`long_convolution` for a ``spectrum`` of :func:`lags_spectrum` that is kept; without gradients.

    Args:
        u: real (batch, 1, H, L).
        spectrum: complex (channels, H, fft_length(L) // 2 + 1).
    """
    length = u.shape[-1]
    size = fft_length(length)
    y = torch.fft.irfft(_multiply(_transformed(u, size), spectrum), n=size, norm="forward")
    return y[..., :length]


def lags_spectrum(lags: Tensor) -> Tensor:
    """The spectrum of ``lags``, real (..., size), divided by ``size``, so that the way back need not be: complex."""
    return torch.fft.rfft(lags, norm="forward")


class _LongConvolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, u: Tensor, lags: Tensor) -> Tensor:
        ctx.size = lags.shape[-1]
        spectrum = lags_spectrum(lags)
        y = torch.fft.irfft(_multiply(_transformed(u, ctx.size), spectrum), n=ctx.size, norm="forward")
        ctx.save_for_backward(u, spectrum.conj_physical_())
        # A slice would keep twice its memory alive for as long as the graph.
        return y[..., : u.shape[-1]].contiguous()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Convolutions turn into correlations: conjugate spectra."""
        u, conjugate = ctx.saved_tensors
        transformed = _transformed(gradient, ctx.size)  # (batch, channels, H, F)
        du = dlags = None
        if ctx.needs_input_grad[1]:
            by_lag = _multiply(_transformed(u, ctx.size).conj_physical_(), transformed)
            dlags = torch.fft.irfft(_sum(by_lag, 0), n=ctx.size)
        if ctx.needs_input_grad[0]:
            by_sample = _sum(_multiply(transformed, conjugate), 1).unsqueeze(1)
            du = torch.fft.irfft(by_sample, n=ctx.size, norm="forward")[..., : u.shape[-1]]
        return du, dlags


def _transformed(u: Tensor, size: int) -> Tensor:
    """The spectrum of ``u`` (..., H, L) followed by zeros.

    Signals whose channels lie side by side are brought in order a piece at a time: a whole one would leave the caches
    between the reading of one channel and the next.
    """
    length = u.shape[-1]
    if u.device.type != "cpu" or u.stride(-1) == 1:
        return torch.fft.rfft(u, n=size)
    padded = u.new_empty(*u.shape[:-1], size)
    padded[..., length:] = 0
    piece = max(1, _PIECE // u.shape[-2])
    for begin in range(0, length, piece):
        padded[..., begin : min(begin + piece, length)] = u[..., begin : begin + piece]
    return torch.fft.rfft(padded)


def _multiply(x: Tensor, y: Tensor) -> Tensor:
    """x · y, written over ``x`` where it has room: these are the largest tensors of a layer."""
    return x.mul_(y) if torch.broadcast_shapes(x.shape, y.shape) == x.shape else x * y


def _sum(x: Tensor, axis: int) -> Tensor:
    return x.squeeze(axis) if x.shape[axis] == 1 else x.sum(axis)
