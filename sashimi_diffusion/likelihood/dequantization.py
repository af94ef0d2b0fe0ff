"""Quantized samples as intervals: 16-bit audio, and the tokens of autoregressive models.

A density says nothing about single numbers. The probability of a quantized sample is the integral of the density over
its interval, the cell.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sashimi_diffusion.data.pre_emphasis import pre_emphasize
from sashimi_diffusion.data.quantization import QUANTIZATIONS, encode, extremes, normalize
from sashimi_diffusion.errors import UserError

PCM = "pcm"
"""The quantization of wav files: even steps, 2^(1 - bits) apart."""


class Cells(NamedTuple):
    """Quantized waveforms.

    Args:
        lower, upper: ends of the interval of each sample, float64 (B, C, L).
        value: the quantized waveforms, inside of the intervals, float64 (B, C, L).
    """

    lower: Tensor
    upper: Tensor
    value: Tensor


@dataclass(frozen=True)
class Quantization:
    """A quantization of audio.

    Args:
        kind: "pcm", or "mu-law" or "linear" as autoregressive models have them (see
            :mod:`sashimi_diffusion.data.quantization`): each waveform is scaled from its extremes to the whole range.
        bits: bits of a sample.

    Raises:
        UserError: another kind, or another number of bits than 2 to 24.
    """

    kind: str = PCM
    bits: int = 16

    def __post_init__(self) -> None:
        if self.kind not in (PCM, *QUANTIZATIONS):
            raise UserError(f"quantization is {self.kind!r}, expected one of {', '.join((PCM, *QUANTIZATIONS))}")
        if not (type(self.bits) is int and 2 <= self.bits <= 24):
            raise UserError(f"a quantization has {self.bits!r} bits: expected a whole number from 2 to 24")

    def __str__(self) -> str:
        return f"{self.bits}-bit {'PCM' if self.kind == PCM else self.kind}"

    def cells(self, audio: Tensor) -> Cells:
        """Return the cells of waveforms (B, C, L); full scale is 1."""
        audio = audio.double()
        if self.kind == PCM:
            step = 2.0 ** (1 - self.bits)
            value = torch.round(audio / step) * step
            return Cells(value - step / 2, value + step / 2, value)
        lowest, highest = extremes(audio)
        tokens = encode(normalize(audio.float(), self.kind), self.kind, self.bits)  # as autoregressive models see them
        lower, middle, upper = (self._edge(tokens + part) for part in (0.0, 0.5, 1.0))
        # The inverse of `normalize`.
        low, high = (-1.0, 1.0) if self.kind == "mu-law" else (0.0, 1.0)
        scale = (highest - lowest + 1e-6) / (high - low)
        lower, middle, upper = (lowest + (edge - low) * scale for edge in (lower, middle, upper))
        return Cells(lower, upper, middle)

    def _edge(self, tokens: Tensor) -> Tensor:
        """Return where the interval of a (fractional) token begins, the inverse of ``encode``."""
        fraction = (tokens.double() - 0.005) / (2**self.bits - 0.01)
        if self.kind == "linear":
            return fraction
        compressed, mu = 2 * fraction - 1, 2**self.bits - 1
        return torch.sign(compressed) * torch.expm1(compressed.abs() * math.log1p(mu)) / mu


def as_seen(cells: Cells, gain: Tensor, pre_emphasis: float, waveform_std: float) -> Cells:
    """Return cells as a diffusion model sees them: scaled, after pre-emphasis, divided by the deviation.

    Pre-emphasis subtracts a part of the sample before. The cell of each sample is conditional on that sample.

    Args:
        cells: of the recordings.
        gain: factor of each recording, (B, 1, 1).
        pre_emphasis, waveform_std: of the model.
    """
    scale, value = gain / waveform_std, cells.value * gain / waveform_std
    emphasized = pre_emphasize(value, pre_emphasis)
    lower, upper = (emphasized + (edge - cells.value) * scale for edge in (cells.lower, cells.upper))
    return Cells(lower, upper, emphasized)


def log_cell_probability(cells: Cells, mean: Tensor, deviation: Tensor) -> Tensor:
    """Return the log-probability of each cell under a normal distribution, float64 (B, C, L).

    Args:
        cells: (B, C, L).
        mean: float64 (B, C, L).
        deviation: float64, (B, 1, 1).
    """
    low, high = (cells.lower - mean) / deviation, (cells.upper - mean) / deviation
    # The lower tail is exact in floating point, the upper one is not.
    low, high = torch.where(low > 0, -high, low), torch.where(low > 0, -low, high)
    upper = torch.special.log_ndtr(high)
    return upper + torch.log1p(-torch.exp((torch.special.log_ndtr(low) - upper).clamp(max=-1e-12)))


SCALE_BITS = 16
"""Bits of the deviation that :func:`decoded` chooses for a waveform."""


def decoded(cells: Cells, mean: Tensor) -> Tensor:
    """Return the log-probability of quantized waveforms, given a prediction of them, in nats, float64 (B,).

    The samples are independent and normal around the prediction. Their common deviation is that of the waveform itself,
    rounded to bfloat16, and its bits are part of the result.

    Args:
        cells: the waveforms, as the model sees them, (B, C, L).
        mean: the prediction, (B, C, L).
    """
    mean = mean.double()
    power = (cells.value - mean).square() + (cells.upper - cells.lower).square() / 12
    deviation = power.mean(dim=(1, 2), keepdim=True).sqrt().bfloat16().double()
    return log_cell_probability(cells, mean, deviation).sum(dim=(1, 2)) - SCALE_BITS * math.log(2)
