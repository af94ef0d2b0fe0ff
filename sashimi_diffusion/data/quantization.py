"""8-bit samples as autoregressive models see them, exactly as the official code makes them.

A waveform is first scaled over itself (:func:`normalize`), then quantized (:func:`encode`); :func:`decode` gives the
left edge of a level's interval, so the middle level is exact silence.
"""

import math

import torch
from torch import Tensor

from sashimi_diffusion.errors import UserError

QUANTIZATIONS = ("mu-law", "linear")


def check_quantization(quantization: str) -> None:
    """Raise UserError unless ``quantization`` is one of QUANTIZATIONS."""
    if quantization not in QUANTIZATIONS:
        raise UserError(f"unknown quantization {quantization!r}: expected one of {', '.join(QUANTIZATIONS)}")


def extremes(waveform: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest sample of each waveform (..., L), both (..., 1)."""
    return waveform.amin(dim=-1, keepdim=True), waveform.amax(dim=-1, keepdim=True)


def normalize(waveform: Tensor, quantization: str, limits: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """Scale each waveform (..., L) so that its smallest and largest sample reach the ends of what is quantized.

    [-1, 1] for "mu-law", [0, 1] for "linear". A constant waveform has no range and comes to lie at the lower end.
    ``limits`` are the :func:`extremes` of the recording that a waveform is a part of, when that is scaled as a whole.
    """
    check_quantization(quantization)
    low, high = (-1.0, 1.0) if quantization == "mu-law" else (0.0, 1.0)
    minimum, maximum = extremes(waveform) if limits is None else limits
    return low + (high - low) * (waveform - minimum) / (maximum - minimum + 1e-6)


def encode(waveform: Tensor, quantization: str, bits: int = 8) -> Tensor:
    """The levels, int64 in [0, 2^bits), of a waveform that :func:`normalize` has scaled.

    mu-law: sign(x) log(1 + mu |x|) / log(1 + mu) with mu = 2^bits - 1, in equal steps (ITU-T G.711; WaveNet, arXiv
    1609.03499, section 2.2).
    """
    check_quantization(quantization)
    if quantization == "linear":
        return _level(waveform, bits)
    mu = 2**bits - 1
    compressed = torch.sign(waveform) * torch.log1p(mu * (waveform + 1e-8).abs()) / math.log1p(mu)
    return _level((compressed + 1) / 2, bits)


def decode(tokens: Tensor, quantization: str, bits: int = 8) -> Tensor:
    """Waveform, float32 in [-1, 1), of levels; ``2^(bits - 1)`` is exactly 0 in both quantizations."""
    check_quantization(quantization)
    y = tokens.float() / 2 ** (bits - 1) - 1
    if quantization == "linear":
        return y
    mu = 2**bits - 1
    return torch.sign(y) * torch.expm1(y.abs() * math.log1p(mu)) / mu


def _level(share: Tensor, bits: int) -> Tensor:
    """Which of 2^bits equal intervals a number in [0, 1] lies in; both ends are a little inside."""
    return torch.floor(share * (2**bits - 0.01) + 0.005).long()
