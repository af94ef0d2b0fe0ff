"""Notes: how many begin in a second, and how often each of the twelve pitch classes sounds."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sashimi_evaluation.metrics.frames import HOP_SECONDS, SoundingFrames, sounding_frames
from sashimi_evaluation.metrics.intervals import Resampling
from sashimi_evaluation.metrics.metric import Metric, mean_metric

PITCH_CLASSES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")
"""Names of the pitch classes in the order of a histogram."""
_ONSET_SECONDS, _PITCH_SECONDS = 0.046, 0.256
_LOWEST_HZ, _HIGHEST_HZ = 55.0, 1760.0  # A1 to A6, where a semitone is wider than a bin or a note has many harmonics
_BANDS_PER_OCTAVE = 24
_COMPRESSION = 100.0  # of the amplitude, relative to the loudest band of the clip
_LAG = 2  # frames; the rise of a note takes longer than a hop
_NEAR, _BEFORE, _AFTER = 3, 10, 7  # frames: an onset is the largest of 60 ms and above the mean of 170 ms
_RISE = 0.03  # mean rise of the compressed bands that is an onset; white noise has two such rises in a second
_FAINT_DB = -40.0  # of a spectral peak, relative to the loudest of its frame


@dataclass(frozen=True)
class MusicProperties:
    """The notes of one clip.

    Args:
        onsets_per_second: onsets divided by the duration of the clip; 0 for silence.
        pitch_classes: share of each pitch class in the amplitude of all spectral peaks, float64 (12,), with the sum 1;
            NaN where nothing sounds.
    """

    onsets_per_second: float
    pitch_classes: np.ndarray


def music_properties(waveform: np.ndarray, sample_rate: int) -> MusicProperties:
    """Return the onsets and the pitch classes of one clip.

    An onset is a peak of the spectral flux: the mean rise of the compressed amplitudes of bands of a quarter tone
    within 20 ms, with the largest of three neighboring bands as the earlier amplitude, so that vibrato is no onset
    (Böck and Widmer 2013, "Maximum filter vibrato suppression for onset detection"). Pitch classes are those of the
    spectral peaks from 55 to 1,760 Hz, with A at 440 Hz and harmonics included.

    Args:
        waveform: float, (L,), not empty.
        sample_rate: sample rate in Hz.
    """
    onsets = onset_times(waveform, sample_rate)
    return MusicProperties(len(onsets) / (len(waveform) / sample_rate), _pitch_classes(waveform, sample_rate))


def music_metrics(
    reference: Mapping[str, np.ndarray], properties: Mapping[str, np.ndarray], resampling: Resampling
) -> list[Metric]:
    """Return the onsets per second, and the distance of the pitch classes from those of the reference.

    The distance is half of the sum of the absolute differences of the mean shares: 0 for the same key and style, 1 for
    sets without a common pitch class.

    Args:
        reference: properties of the real clips: ``onsets_per_second`` (clips,) and ``pitch_classes`` (clips, 12).
        properties: properties of the clips to evaluate.
        resampling: settings of the confidence intervals.
    """
    metrics = [mean_metric("onsets", "Onsets per second", properties["onsets_per_second"], resampling)]
    both = reference["pitch_classes"], properties["pitch_classes"]
    real, sounding = (np.isfinite(shares[:, 0]) for shares in both)
    both = both[0][real], both[1][sounding]
    if all(map(len, both)):
        title = "Pitch classes, distance from the reference"
        interval = resampling.where(sounding, real).interval(_distance, *both, low=0, high=1)
        metrics.append(Metric("pitch_class_distance", title, _distance(*both), interval, "lower"))
    return metrics


def onset_times(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return the times in seconds at which notes begin, float64 (onsets,), see :func:`music_properties`."""
    length, hop = round(_ONSET_SECONDS * sample_rate), round(HOP_SECONDS * sample_rate)
    quiet = np.zeros(_LAG * hop + length)  # a note at the first sample is an onset, too
    samples = np.concatenate([quiet, np.asarray(waveform, dtype=np.float64)])
    starts = np.arange(0, len(samples) - length + 1, hop)
    frames = SoundingFrames(samples, starts, length, sample_rate)
    bands = np.sqrt(_quarter_tones(frames.power(), frames.frequencies))  # (frames, bands)
    if not bands.size or not bands.max() > 0:
        return np.empty(0)
    levels = np.log10(1 + _COMPRESSION * bands / bands.max())
    earlier = np.pad(levels[:-_LAG], ((0, 0), (1, 1)), mode="edge")
    widest = np.maximum(np.maximum(earlier[:, :-2], earlier[:, 1:-1]), earlier[:, 2:])
    flux = np.maximum(levels[_LAG:] - widest, 0).mean(axis=1)  # (frames - lag,)
    peaks = _peaks(flux)
    return np.maximum((starts[peaks + _LAG] + length / 2 - len(quiet)) / sample_rate, 0.0)


def _peaks(flux: np.ndarray) -> np.ndarray:
    """Return the indices of the largest values around them that rise enough above the mean around them."""
    before, after = max(_NEAR, _BEFORE), max(_NEAR, _AFTER)
    padded = np.pad(flux, (before, after))
    around = np.lib.stride_tricks.sliding_window_view(padded, before + after + 1)  # (frames, 18)
    near = around[:, before - _NEAR : before + _NEAR + 1]
    # The first of equal values.
    largest = (near.argmax(axis=1) == _NEAR) & (flux > 0)
    return np.flatnonzero(largest & (flux >= around.mean(axis=1) + _RISE))


def _quarter_tones(power: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Return the power in bands of a quarter tone, and of a bin where bins are wider, (frames, bands)."""
    count = int(np.log2(frequencies[-1] / _LOWEST_HZ) * _BANDS_PER_OCTAVE)
    edges = _LOWEST_HZ * 2 ** (np.arange(max(count, 0) + 1) / _BANDS_PER_OCTAVE)
    first = np.unique(np.searchsorted(frequencies, edges))
    return np.add.reduceat(power, first[first < len(frequencies)], axis=1) if count > 0 else np.empty((len(power), 0))


def _pitch_classes(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    frames = sounding_frames(waveform, sample_rate, _PITCH_SECONDS)
    shares = np.full(len(PITCH_CLASSES), np.nan)
    if not len(frames.starts) or len(waveform) < frames.length:
        return shares
    step = round(_PITCH_SECONDS / 4 / HOP_SECONDS)
    frames = SoundingFrames(frames.samples, frames.starts[::step], frames.length, sample_rate)
    power = frames.power()
    middle = power[:, 1:-1]
    peak = (middle > power[:, :-2]) & (middle >= power[:, 2:])
    peak &= middle > power.max(axis=1, keepdims=True) * 10 ** (_FAINT_DB / 10)
    peak &= (frames.frequencies[1:-1] >= _LOWEST_HZ) & (frames.frequencies[1:-1] <= _HIGHEST_HZ)
    rows, bins = np.nonzero(peak)
    if not len(rows):
        return shares
    below, at, above = (np.log(power[rows, bins + offset] + np.finfo(float).tiny) for offset in range(3))
    curvature = below - 2 * at + above
    shift = np.where(curvature < 0, (below - above) / (2 * np.where(curvature < 0, curvature, -1)), 0.0)
    pitch = 12 * np.log2((bins + 1 + np.clip(shift, -0.5, 0.5)) * frames.frequencies[1] / 440)
    classes = (np.round(pitch).astype(int) + PITCH_CLASSES.index("A")) % len(PITCH_CLASSES)
    shares = np.bincount(classes, np.sqrt(power[rows, bins + 1]), len(PITCH_CLASSES))
    return shares / shares.sum()


def _distance(real: np.ndarray, other: np.ndarray) -> float:
    return float(np.abs(real.mean(axis=0) - other.mean(axis=0)).sum() / 2)
