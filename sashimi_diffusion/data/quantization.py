"""Quantize audio for autoregressive models, exactly as the official code does.

A waveform is scaled to its own range (:func:`normalize`), then quantized (:func:`encode`). :func:`decode` returns the
lower edge of each interval, so the middle level is exact silence.
"""

import math

import torch
from torch import Tensor

from sashimi_diffusion.errors import UserError

QUANTIZATIONS = ("mu-law", "linear")


def check_quantization(quantization: str) -> None:
    """Raise UserError if ``quantization`` is not one of QUANTIZATIONS."""
    if quantization not in QUANTIZATIONS:
        raise UserError(f"unknown quantization {quantization!r}: expected one of {', '.join(QUANTIZATIONS)}")


def bits_of(num_tokens: int) -> int:
    """Return the number of bits of a quantization with ``num_tokens`` levels.

    Raises:
        UserError: ``num_tokens`` is not a power of two.
    """
    if num_tokens < 2 or num_tokens & (num_tokens - 1):
        raise UserError(f"num_tokens is {num_tokens}: audio is quantized to a power of two of levels")
    return num_tokens.bit_length() - 1


def extremes(waveform: Tensor) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest sample of each waveform (..., L), both (..., 1)."""
    return waveform.amin(dim=-1, keepdim=True), waveform.amax(dim=-1, keepdim=True)


def normalize(waveform: Tensor, quantization: str, limits: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Scale each waveform so that its smallest and largest samples are the ends of the quantized range.

    The range is [-1, 1] for "mu-law" and [0, 1] for "linear". A constant waveform is mapped to the lower end.

    Args:
        waveform: shape (..., L).
        quantization: one of QUANTIZATIONS.
        limits: :func:`extremes` of the whole recording, if ``waveform`` is a part that must be scaled like the whole.
    """
    check_quantization(quantization)
    low, high = (-1.0, 1.0) if quantization == "mu-law" else (0.0, 1.0)
    minimum, maximum = extremes(waveform) if limits is None else limits
    return low + (high - low) * (waveform - minimum) / (maximum - minimum + 1e-6)


def encode(waveform: Tensor, quantization: str, bits: int = 8) -> Tensor:
    """Return the levels, int64 in [0, 2^bits), of a waveform scaled by :func:`normalize`.

    mu-law: sign(x) log(1 + mu |x|) / log(1 + mu) with mu = 2^bits - 1, in equal intervals (ITU-T G.711; WaveNet, arXiv
    1609.03499, section 2.2).
    """
    check_quantization(quantization)
    if quantization == "linear":
        return _level(waveform, bits)
    mu = 2**bits - 1
    compressed = torch.sign(waveform) * torch.log1p(mu * (waveform + 1e-8).abs()) / math.log1p(mu)
    return _level((compressed + 1) / 2, bits)


def decode(tokens: Tensor, quantization: str, bits: int = 8) -> Tensor:
    """Return the waveform, float32 in [-1, 1), of levels; ``2^(bits - 1)`` is exactly 0 in both quantizations."""
    check_quantization(quantization)
    y = tokens.float() / 2 ** (bits - 1) - 1
    if quantization == "linear":
        return y
    mu = 2**bits - 1
    return torch.sign(y) * torch.expm1(y.abs() * math.log1p(mu)) / mu


def _level(fraction: Tensor, bits: int) -> Tensor:
    """Return the index of the interval, of 2^bits equal ones, that contains ``fraction`` in [0, 1]."""
    # Shifted and scaled by a hundredth of an interval, so that 0 and 1 are not on an edge.
    return torch.floor(fraction * (2**bits - 0.01) + 0.005).long()
