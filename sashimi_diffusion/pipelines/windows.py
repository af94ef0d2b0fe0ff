"""Windows that are denoised together: audio of any length from a network that was trained on short clips.

In every sampling step, the network sees overlapping windows of the noisy waveform, and of its mel spectrogram if it is
a vocoder. The weighted mean of their predictions is that of the waveform (MultiDiffusion, arXiv 2302.08113, eq. 5 and
7). All windows so agree in what they share. Memory is bounded: ``batch`` windows are in one forward pass.
"""

import math
import numbers
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sashimi_diffusion.arguments import short_form
from sashimi_diffusion.errors import UserError

Predict = Callable[..., Tensor]

MEL_OVERLAP_SECONDS = 0.25
"""Overlap of neighboring windows of a vocoder by default, at most half of a window."""


@dataclass(frozen=True)
class Windows:
    """Positions of overlapping windows.

    Args:
        length: samples of the waveform L; at least ``window``.
        window: samples of a window.
        overlap: samples that neighboring windows share; the last two may share more. 0 for one window.
        batch: largest number of windows in one forward pass.
    """

    length: int
    window: int
    overlap: int = 0
    batch: int = 1

    @property
    def count(self) -> int:
        """Number of windows."""
        return math.ceil((self.length - self.window) / (self.window - self.overlap)) + 1

    @property
    def rows(self) -> int:
        """Windows in each forward pass; every pass has the same number, the last one repeats its last window."""
        return math.ceil(self.count / math.ceil(self.count / self.batch))

    @property
    def starts(self) -> list[int]:
        """The first sample of each window; the last window ends where the waveform ends."""
        last, hop = self.length - self.window, self.window - self.overlap
        return [min(index * hop, last) for index in range(self.count)]

    def first(self, sample: Tensor) -> Tensor:
        """Return the windows of the first forward pass, (rows · B, C, window)."""
        return self._cut(sample, next(self._passes()))

    def _passes(self) -> Iterator[list[int]]:
        """Yield the beginnings of the windows of each forward pass."""
        starts, rows = self.starts, self.rows
        for first in range(0, len(starts), rows):
            yield starts[first : first + rows]

    def _weight(self, device: torch.device) -> Tensor:
        """Return the weight of the samples of a window, which falls towards both ends, (window,)."""
        rising = (torch.arange(self.window, device=device) + 0.5) / max(self.overlap, 1)
        return torch.minimum(rising, rising.flip(0)).clamp(max=1.0)

    def _cut(self, tensor: Tensor, starts: list[int]) -> Tensor:
        """Return the windows at ``starts`` of waveforms (B, C, L), or of mels (B, bands, frames), window by window."""
        starts, each = starts + starts[-1:] * (self.rows - len(starts)), self.length // tensor.shape[-1]
        return torch.cat([tensor[..., start // each : (start + self.window) // each] for start in starts])

    def predict(self, predict: Predict, sample: Tensor, timestep: Tensor, mel: Tensor | None = None) -> Tensor:
        """Return the weighted mean of the predictions of all windows of ``sample``, (B, C, L).

        Args:
            predict: prediction of windows (rows · B, C, window) at a timestep; for a vocoder, with their mel as the
                third argument.
            sample: noisy waveforms, (B, C, L).
            timestep: the timestep.
            mel: log-mel spectrograms of a vocoder, (B, mel_channels, frames).
        """
        total, weights = torch.zeros_like(sample), sample.new_zeros(self.length)
        weight = self._weight(sample.device)
        for starts in self._passes():
            own_mel = () if mel is None else (self._cut(mel, starts),)
            predictions = predict(self._cut(sample, starts), timestep, *own_mel)
            predictions = predictions.unflatten(0, (self.rows, len(sample)))
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
) -> Windows:
    """Return the windows of the noisy waveforms, which may be longer than the result; one window if it has all of it.

    The windows of a vocoder begin and end between the frames of the mel. They are as few as possible, of equal length.

    Args:
        length: samples of the result.
        window_in_s: seconds of a window, for a vocoder of the longest one, or None for one pass over everything.
        overlap_in_s: seconds that neighboring windows share; None is a quarter of a window, for a vocoder
            ``MEL_OVERLAP_SECONDS``.
        batch: largest number of windows in one forward pass.
        config: config of the model.
        multiple: the network takes multiples of this number of samples; a window is rounded up to one.
        names: of the two arguments, for error messages.

    Raises:
        UserError: not a number of seconds, an overlap without a window, or one that is not shorter than it.
    """
    if window_in_s is None:
        if overlap_in_s is not None:
            raise UserError(f"{names[1]} was given without {names[0]}: give both, or leave it out")
        return _one_window(length, multiple)
    rate = config["sample_rate"]
    asked = _samples(names[0], window_in_s, rate)
    overlap = None if overlap_in_s is None else _samples(names[1], overlap_in_s, rate)
    if overlap is not None and overlap >= asked:
        raise UserError(
            f"{names[1]} is {overlap_in_s:g}, {names[0]} is {window_in_s:g}: expected an overlap that is shorter "
            "than the window"
        )
    if config.get("mel_channels") is not None:
        unit = math.lcm(math.prod(config["mel_upsample"]), multiple)
        longest = max(asked // unit, 2) * unit
        if overlap is None:
            overlap = min(math.ceil(MEL_OVERLAP_SECONDS * rate), longest // (2 * unit) * unit)
        return equal_windows(length, longest, min(overlap, longest - unit), unit, batch)
    window = math.ceil(asked / multiple) * multiple
    overlap = window // 4 if overlap is None else overlap
    return _one_window(length, multiple) if length <= window else Windows(length, window, overlap, batch)


def _one_window(length: int, multiple: int) -> Windows:
    whole = math.ceil(length / multiple) * multiple
    return Windows(whole, whole)


def equal_windows(length: int, longest: int, overlap: int, unit: int, batch: int) -> Windows:
    """Return the smallest number of windows of equal length that begin and end at multiples of ``unit``.

    Args:
        length: samples of the result; the windows together may be longer.
        longest: samples of the longest possible window, a multiple of ``unit``.
        overlap: samples that neighboring windows share, less than ``longest``; rounded up to a multiple of ``unit``.
        unit: in samples.
        batch: largest number of windows in one forward pass.
    """
    whole = math.ceil(length / unit) * unit
    if whole <= longest:
        return Windows(whole, whole)
    overlap = math.ceil(overlap / unit) * unit
    count = math.ceil((whole - overlap) / (longest - overlap))
    hop = math.ceil((whole - overlap) / (count * unit)) * unit
    return Windows(overlap + count * hop, overlap + hop, overlap, batch)


def _samples(name: str, seconds: Any, rate: int) -> int:
    """Return the samples in a number of seconds; raise UserError if it is no number or less than one sample."""
    number = isinstance(seconds, numbers.Real) and not isinstance(seconds, bool) and math.isfinite(seconds)
    if not number or seconds * rate < 0.5:
        raise UserError(f"{name} is {short_form(seconds)}: expected a number of seconds above 0")
    return max(1, round(seconds * rate))
