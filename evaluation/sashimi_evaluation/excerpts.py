"""Excerpts of long recordings: where they start, and how they are read without the whole recording in memory."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sashimi_diffusion.data.audio import check_file_rate, resample
from sashimi_diffusion.data.decoding import decode_blocks
from sashimi_diffusion.data.levels import peak_of
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.terminal import printable
from sashimi_evaluation.preparation import Preparation

MOST_EXCERPTS = 100_000
"""Maximum number of excerpts of a set; the results of each take about 5 kB of memory."""
_SECONDS = (0.1, 60.0)  # of a window; 60 seconds at 48 kHz are 12 MB
_HOPS = (0.01, 3600.0)
_LEVEL_SECONDS = 10.0  # recordings are resampled in pieces of this duration to measure their level


@dataclass(frozen=True)
class Windows:
    """How recordings are cut into excerpts.

    Excerpts start at 0, ``hop``, 2 ``hop`` and so on. A rest that is shorter than the window is left out. A recording
    that is shorter than the window is one excerpt; networks get it padded with zeros.

    Args:
        seconds: duration of an excerpt in seconds, from 0.1 to 60.
        hop: time from the start of one excerpt to that of the next in seconds, from 0.01 to 3600; None: ``seconds``.

    Raises:
        UserError: a number is out of its range.
    """

    seconds: float
    hop: float | None = None

    def __post_init__(self) -> None:
        for flag, value, (low, high) in (("--window", self.seconds, _SECONDS), ("--hop", self.step, _HOPS)):
            if not (math.isfinite(value) and low <= value <= high):
                raise UserError(f"{flag} is {value:g}, expected a number of seconds from {low:g} to {high:g}")

    @property
    def step(self) -> float:
        """Time from the start of one excerpt to that of the next in seconds."""
        return self.seconds if self.hop is None else self.hop

    def __str__(self) -> str:
        return f"{self.seconds:g} s every {self.step:g} s"


@dataclass(frozen=True)
class Excerpt:
    """One excerpt of a recording.

    Args:
        samples: the mean of the channels, float32 (L,).
        sample_rate: in Hz.
        start: time in the recording in seconds.
        channels: number of channels in the file.
        peak: largest absolute sample before the preparation.
        gain: factor of the preparation for the level.
    """

    samples: np.ndarray
    sample_rate: int
    start: float
    channels: int
    peak: float
    gain: float = 1.0


def excerpts(path: Path, windows: Windows, preparation: Preparation) -> Iterator[Excerpt]:
    """Yield the prepared excerpts of a file. Memory does not grow with the duration of the file.

    Each excerpt is resampled on its own. If the preparation has a level, the file is read twice: the whole recording
    has that level, as in training, not each excerpt. The length of the preparation is not used.

    Raises:
        AudioFileError: the file cannot be used, or a part of it is damaged, when that part is reached.
    """
    gain = 1.0
    if preparation.rms is not None and (level := _recording_level(path, preparation.rate)) > 0:
        gain = preparation.rms / level
    for start, samples, file_rate, channels in _cut(path, windows.seconds, windows.step):
        prepared, rate = prepared_excerpt(samples, file_rate, preparation, gain)
        yield Excerpt(prepared, rate, start / file_rate, channels, peak_of(samples), gain)


def read_excerpt(path: Path, start: float, seconds: float) -> tuple[np.ndarray, int]:
    """Return the samples of a file from ``start`` on for at most ``seconds``, float32 (L,), and the rate in Hz.

    The part before ``start`` is skipped.

    Raises:
        AudioFileError: the file cannot be used, or has no sample there.
    """
    rate = next(decode_blocks(path)).sample_rate
    length, parts, count = max(1, round(seconds * rate)), [], 0
    for block in decode_blocks(path, round(start * rate)):
        parts.append(block.samples)
        count += len(block.samples)
        if count >= length:
            break
    if not parts:
        raise UserError(f"{printable(path)} has no sample at {start:g} s any more: it has changed")
    return np.concatenate(parts)[:length], rate


def prepared_excerpt(samples: np.ndarray, rate: int, preparation: Preparation, gain: float) -> tuple[np.ndarray, int]:
    """Return an excerpt, float32 (L,), at the rate of the preparation and multiplied by ``gain``, and its rate."""
    if preparation.rate is not None:
        samples, rate = resample(samples, rate, preparation.rate), preparation.rate
    return (samples if gain == 1 else samples * np.float32(gain)), rate


def _recording_level(path: Path, rate: int | None) -> float:
    """Return the root mean square of a whole recording at ``rate`` Hz, or at its own rate."""
    power, count = 0.0, 0
    for _, samples, own_rate, _ in _cut(path, _LEVEL_SECONDS, _LEVEL_SECONDS, rest=True):
        resampled = samples if rate is None else resample(samples, own_rate, rate)
        power += float(np.square(resampled, dtype=np.float64).sum())
        count += len(resampled)
    return math.sqrt(power / max(1, count))


def _cut(path: Path, seconds: float, hop: float, rest: bool = False) -> Iterator[tuple[int, np.ndarray, int, int]]:
    """Yield the first sample, the samples, the rate in Hz and the channels of each excerpt.

    A recording that is shorter than one excerpt is one. The last one is shorter than the others only with ``rest``.
    """
    kept, offset, index, start, length, rate, channels = bytearray(), 0, 0, 0, 0, 0, 0  # bytes of float32, from offset
    for block in decode_blocks(path):
        if not rate:
            rate, channels = block.sample_rate, block.channels
            check_file_rate(path, rate)
            length = max(1, round(seconds * rate))
        kept += block.samples.tobytes()
        end = offset + len(kept) // 4
        while start + length <= end:
            yield start, _floats(kept, start - offset, length), rate, channels
            index += 1
            start = max(start + 1, round(index * hop * rate))
        drop = min(start, end) - offset
        del kept[: 4 * drop]
        offset += drop
    end = offset + len(kept) // 4
    if start < end and (index == 0 or rest):
        yield start, _floats(kept, start - offset, end - start), rate, channels


def _floats(content: bytearray, start: int, length: int) -> np.ndarray:
    return np.frombuffer(content[4 * start : 4 * (start + length)], dtype=np.float32)
