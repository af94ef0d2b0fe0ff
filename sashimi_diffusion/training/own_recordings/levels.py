"""Measure the levels of recordings, of all of them or of a sample."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sashimi_diffusion.data.audio import read_audio
from sashimi_diffusion.data.decoding import AudioFileError
from sashimi_diffusion.data.levels import level_warning, peak_of
from sashimi_diffusion.training.examples import spread_evenly
from sashimi_diffusion.training.own_recordings.headers import Recording

MAX_SECONDS = 1200
"""Recordings that are together not longer than this, in seconds, are decoded as a whole."""
SAMPLED_FILES, SAMPLED_SECONDS = 60, 20
"""The number of longer recordings that are decoded, and how much of each."""

_FRAME = 0.05  # seconds
_QUIET = 1e-3  # root mean square of a quiet frame: 60 dB below full scale


@dataclass(frozen=True)
class Levels:
    """Levels of decoded recordings; full scale is 1.

    Args:
        complete: whether all recordings were decoded as a whole, and not only the beginning of some.
        files: number of recordings that were decoded.
        rms: root mean square of each recording that is not silent.
        peaks: largest absolute value of each of them.
        quiet: share of the audio in frames of 50 ms below -60 dB.
        equal_channels: whether the channels of each recording are equal.
        bad: recordings that cannot be used, with the reason.
        unusual: recordings that are used, with what is unusual.
    """

    complete: bool
    files: int
    rms: np.ndarray
    peaks: np.ndarray
    quiet: float
    equal_channels: bool
    bad: dict[Path, str]
    unusual: dict[Path, str]


def measure_levels(recordings: Sequence[Recording]) -> Levels:
    """Decode recordings, or a sample of them if they are long, and measure their levels."""
    complete = sum(recording.seconds for recording in recordings) <= MAX_SECONDS
    chosen = recordings if complete else [recordings[i] for i in spread_evenly(len(recordings), SAMPLED_FILES)]
    bad: dict[Path, str] = {}
    unusual: dict[Path, str] = {}
    rms, peaks, frames, equal = [], [], [], True
    for recording in tqdm(chosen, desc="Measuring levels", unit="file", delay=2):
        try:
            seconds = None if complete else SAMPLED_SECONDS
            samples = np.atleast_2d(read_audio(recording.path, max_seconds=seconds, channels=recording.channels))
        except AudioFileError as error:
            bad[recording.path] = error.reason
            continue
        equal = equal and bool((samples == samples[0]).all())
        if warning := level_warning(samples):
            unusual[recording.path] = warning
        frames.append(_rms_of_frames(samples, math.ceil(_FRAME * recording.sample_rate)))
        if peak := peak_of(samples):
            peaks.append(peak)
            rms.append(float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))))
    quiet = float(np.mean(np.concatenate(frames) < _QUIET)) if frames else 0.0
    return Levels(complete, len(frames), np.array(rms), np.array(peaks), quiet, equal, bad, unusual)


def _rms_of_frames(samples: np.ndarray, size: int) -> np.ndarray:
    """Return the root mean square of consecutive frames of ``size`` samples; the last one may be shorter.

    Args:
        samples: shape (channels, length).
        size: samples of a frame.
    """
    length = samples.shape[1]
    starts = np.arange(0, length, size)
    energy = np.add.reduceat(np.square(samples, dtype=np.float64).mean(axis=0), starts)
    return np.sqrt(energy / np.minimum(size, length - starts))
