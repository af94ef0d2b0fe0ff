"""Long convolutions by FFT."""

from typing import Any

import torch
from torch import Tensor

from sashimi_kernels.shapes import require_samples

_PIECE_ELEMENTS = 2**17  # half a megabyte of float32


def fft_length(length: int) -> int:
    """Return the smallest 5-smooth FFT size that convolves two signals of ``length`` samples without wrapping around.

    Raises:
        ValueError: the length is 0.
    """
    require_samples(length)
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
    """Arrange convolution kernels for the FFT, including the reverse direction and the skip connection.

    The result represents y[t] = skip · u[t] + Σ_j kernel[j] u[t-j] + Σ_j reverse[j] u[t+shift+j].

    Args:
        kernel: causal kernel, real (..., L).
        skip: D of the state space, real (...), added at lag zero.
        reverse: kernel of the reverse direction, real (..., L).
        shift: 1 if the reverse direction starts at the next sample (newer official code), 0 if both directions include
            the current sample (older official code).

    Returns:
        real (..., fft_length(L)): the lags 0, 1, … from the beginning, and the lags -1, -2, … from the end backwards.

    Raises:
        ValueError: the kernel has no samples.
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
    """Convolve a signal with kernels that may be as long as the signal.

    The backward pass computes three real transforms. PyTorch's own derivative of the FFT computes complex transforms,
    which take twice as long.

    Args:
        u: signal, real (B, 1, H, L).
        lags: kernels arranged by :func:`kernel_lags`, real (M, H, size).

    Returns:
        real (B, M, H, L).

    Raises:
        ValueError: the signal has no samples.
    """
    require_samples(u.shape[-1])
    return _LongConvolution.apply(u, lags)[0]


def spectrum_convolution(u: Tensor, spectrum: Tensor) -> Tensor:
    """Convolve a signal with kernels given by their spectrum, for inference with a cached spectrum.

    Args:
        u: signal, real (B, 1, H, L).
        spectrum: result of :func:`lags_spectrum`, complex (M, H, fft_length(L) // 2 + 1).

    Returns:
        real (B, M, H, L).

    Raises:
        ValueError: the signal has no samples.
    """
    length = u.shape[-1]
    size = fft_length(length)
    return _inverse_transform(_multiply(_transform(u, size), spectrum), size, "forward")[..., :length]


def lags_spectrum(lags: Tensor) -> Tensor:
    """Return the spectrum of ``lags``, real (..., size), divided by ``size``: complex (..., size // 2 + 1).

    The division is done here once, so the inverse transform of every convolution needs none.
    """
    return torch.fft.rfft(lags, norm="forward")


class _LongConvolution(torch.autograd.Function):
    """The convolution, with the conjugate spectrum of the lags as second output.

    The backward pass needs the spectrum. A saved output, unlike a saved intermediate tensor, stays connected to the
    lags, so second derivatives are correct.
    """

    @staticmethod
    def forward(ctx: Any, u: Tensor, lags: Tensor) -> tuple[Tensor, Tensor]:
        ctx.size = lags.shape[-1]
        ctx.set_materialize_grads(False)
        spectrum = lags_spectrum(lags)
        y = _inverse_transform(_multiply(_transform(u, ctx.size), spectrum), ctx.size, "forward")
        conjugate = spectrum.conj_physical_()
        ctx.save_for_backward(u, conjugate)
        # Without the copy, the graph would keep the whole buffer, which is twice as long.
        return y[..., : u.shape[-1]].contiguous(), conjugate

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dconjugate: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Correlate with the gradient: multiply by conjugate spectra."""
        u, conjugate = ctx.saved_tensors
        du = dlags = None
        if dy is not None:
            dy_spectrum = _transform(dy, ctx.size)  # (B, M, H, F)
            if ctx.needs_input_grad[1]:
                product = _multiply(_transform(u, ctx.size).conj_physical_(), dy_spectrum)
                dlags = _inverse_transform(_sum(product, 0), ctx.size, "backward")
            if ctx.needs_input_grad[0]:
                du_spectrum = _sum(_multiply(dy_spectrum, conjugate), 1).unsqueeze(1)
                du = _inverse_transform(du_spectrum, ctx.size, "forward")[..., : u.shape[-1]]
        if dconjugate is not None and ctx.needs_input_grad[1]:  # in a second derivative
            from_conjugate = torch.fft.ifft(dconjugate.conj(), n=ctx.size).real
            dlags = from_conjugate if dlags is None else dlags + from_conjugate
        return du, dlags


def _transform(u: Tensor, size: int) -> Tensor:
    """Return the spectrum of ``u`` (..., H, L), padded with zeros to ``size`` samples.

    On a CPU, signals whose channels are adjacent in memory are copied in pieces that fit the caches. Copying the whole
    signal at once would load every cache line again for every channel.
    """
    if u.numel() == 0:  # MKL refuses an empty batch
        return u.new_empty(*u.shape[:-1], size // 2 + 1, dtype=u.dtype.to_complex())
    length = u.shape[-1]
    if u.device.type != "cpu" or u.stride(-1) == 1:
        return torch.fft.rfft(u, n=size)
    padded = u.new_empty(*u.shape[:-1], size)
    padded[..., length:] = 0
    piece = max(1, _PIECE_ELEMENTS // u.shape[-2])
    for begin in range(0, length, piece):
        padded[..., begin : min(begin + piece, length)] = u[..., begin : begin + piece]
    return torch.fft.rfft(padded)


def _inverse_transform(spectrum: Tensor, size: int, norm: str) -> Tensor:
    """Return ``size`` real samples from their spectrum, unscaled for the norm "forward", / size for "backward"."""
    if spectrum.numel() == 0:
        return spectrum.new_empty(*spectrum.shape[:-1], size, dtype=spectrum.dtype.to_real())
    return torch.fft.irfft(spectrum, n=size, norm=norm)


def _multiply(x: Tensor, y: Tensor) -> Tensor:
    """Return x · y. Without gradients, overwrite ``x`` to save memory: spectra are the largest tensors of a layer."""
    in_place = not torch.is_grad_enabled() and torch.broadcast_shapes(x.shape, y.shape) == x.shape
    return x.mul_(y) if in_place else x * y


def _sum(x: Tensor, axis: int) -> Tensor:
    # A view instead of a copy if there is nothing to add.
    return x.squeeze(axis) if x.shape[axis] == 1 else x.sum(axis)
