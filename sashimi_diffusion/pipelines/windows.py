"""Windows that are denoised together: audio of any length from a network that was trained on short clips.

In every sampling step, the network sees overlapping windows of the noisy waveform, and the weighted mean of their
predictions is that of the waveform (MultiDiffusion, arXiv 2302.08113, eq. 5 and 7). All windows so agree in what they
share. Memory is bounded: ``batch`` windows are in one forward pass.
"""

import math
import numbers
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from sashimi_diffusion.arguments import short_form
from sashimi_diffusion.errors import UserError

Predict = Callable[[Tensor, Tensor], Tensor]


class Windows:
    """Positions of overlapping windows.

    Args:
        length: samples of the waveform L; at least ``window``.
        window: samples of a window.
        overlap: samples that neighboring windows share; the last two may share more.
        batch: largest number of windows in one forward pass.

    Attributes:
        rows: windows in each forward pass; every pass has the same number, the last one repeats its last window.
    """

    def __init__(self, length: int, window: int, overlap: int, batch: int) -> None:
        self.length, self.window, self._overlap = length, window, overlap
        self._count = math.ceil((length - window) / (window - overlap)) + 1
        self.rows = math.ceil(self._count / math.ceil(self._count / batch))

    def first(self, sample: Tensor) -> Tensor:
        """Return the windows of the first forward pass, (rows · B, C, window)."""
        return self._cut(sample, next(self._passes()))

    def _passes(self) -> Iterator[list[int]]:
        """Yield the beginnings of the windows of each forward pass; the last window ends where the waveform ends."""
        last, hop = self.length - self.window, self.window - self._overlap
        for first in range(0, self._count, self.rows):
            yield [min(index * hop, last) for index in range(first, min(first + self.rows, self._count))]

    def _weight(self, device: torch.device) -> Tensor:
        """Return the weight of the samples of a window, which falls towards both ends, (window,)."""
        rising = torch.arange(1, self.window + 1, device=device) / (self._overlap + 1)
        return torch.minimum(rising, rising.flip(0)).clamp(max=1.0)

    def _cut(self, sample: Tensor, starts: list[int]) -> Tensor:
        """Return the windows of waveforms (B, C, L) at ``starts``, (rows · B, C, window), window by window."""
        starts = starts + starts[-1:] * (self.rows - len(starts))
        return torch.cat([sample[..., start : start + self.window] for start in starts])

    def predict(self, predict: Predict, sample: Tensor, timestep: Tensor) -> Tensor:
        """Return the weighted mean of the predictions of all windows of ``sample``, (B, C, L).

        Args:
            predict: prediction of windows (rows · B, C, window) at a timestep.
            sample: noisy waveforms, (B, C, L).
            timestep: the timestep.
        """
        total, weights = torch.zeros_like(sample), sample.new_zeros(self.length)
        weight = self._weight(sample.device)
        for starts in self._passes():
            predictions = predict(self._cut(sample, starts), timestep).unflatten(0, (self.rows, len(sample)))
            for start, prediction in zip(starts, predictions, strict=False):
                total[..., start : start + self.window] += weight * prediction
                weights[start : start + self.window] += weight
        return total / weights


def checked_windows(
    length: int,
    window_in_s: Any,
    overlap_in_s: Any,
    batch: int,
    config: Mapping[str, Any],
    multiple: int,
    names: tuple[str, str] = ("window_in_s", "overlap_in_s"),
) -> tuple[int, Windows | None]:
    """Return the length of the noisy waveforms, and their windows; None if one window has all of it.

    Args:
        length: samples of the result.
        window_in_s: seconds of a window, or None for one pass over everything.
        overlap_in_s: seconds that neighboring windows share; None is a quarter of a window.
        batch: largest number of windows in one forward pass.
        config: config of the model.
        multiple: the network takes multiples of this number of samples; a window is rounded up to one.
        names: of the two arguments, for error messages.

    Raises:
        UserError: not a number of seconds, an overlap without a window, or one that is not shorter than it, or windows
            for a vocoder.
    """
    whole = math.ceil(length / multiple) * multiple
    if window_in_s is None:
        if overlap_in_s is not None:
            raise UserError(f"{names[1]} was given without {names[0]}: give both, or leave it out")
        return whole, None
    if config.get("mel_channels") is not None:
        raise UserError(f"{names[0]} was given, but this model is a vocoder: leave it out")
    rate = config["sample_rate"]
    asked = _samples(names[0], window_in_s, rate)
    window = math.ceil(asked / multiple) * multiple
    overlap = window // 4 if overlap_in_s is None else _samples(names[1], overlap_in_s, rate)
    if overlap >= asked:
        raise UserError(
            f"{names[1]} is {overlap_in_s:g}, {names[0]} is {window_in_s:g}: expected an overlap that is shorter "
            "than the window"
        )
    return (whole, None) if length <= window else (length, Windows(length, window, overlap, batch))


def _samples(name: str, seconds: Any, rate: int) -> int:
    """Return the samples in a number of seconds; raise UserError if it is no number or less than one sample."""
    number = isinstance(seconds, numbers.Real) and not isinstance(seconds, bool) and math.isfinite(seconds)
    if not number or seconds * rate < 0.5:
        raise UserError(f"{name} is {short_form(seconds)}: expected a number of seconds above 0")
    return max(1, round(seconds * rate))
