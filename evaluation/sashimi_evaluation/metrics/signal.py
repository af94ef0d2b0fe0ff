"""Properties of the waveform: level, noise floor, silence and clipping."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sashimi_evaluation.metrics.intervals import Resampling, wilson_interval
from sashimi_evaluation.metrics.metric import Metric, mean_metric

FLOOR_DB = -120.0
"""The lowest level that is reported, in dB relative to full scale."""
SILENT_DB = -60.0
"""A clip is silent if the level of its loudest frame is below this, in dB relative to full scale."""
FRAME_SECONDS = 0.02
SOUND_DB = -40.0
"""The sound of a clip lasts from the first to the last frame above this level, in dB relative to the loudest frame."""


@dataclass(frozen=True)
class SignalProperties:
    """Properties of one waveform. Levels are in dB relative to full scale, which is 1.0, and at least -120 dB.

    Args:
        seconds: duration in seconds.
        level: root mean square of the waveform in dB.
        noise_floor: 10 % quantile of the levels of frames of 20 ms, in dB.
        inner_floor: noise floor between the first and the last frame within 40 dB of the loudest frame, in dB. It
            excludes the silence before and after a word.
        loudest: level of the loudest frame in dB.
        clipped: fraction of the audio samples at or beyond the full scale of 16 bits, from 0 to 1.
    """

    seconds: float
    level: float
    noise_floor: float
    inner_floor: float
    loudest: float
    clipped: float

    @property
    def silent(self) -> bool:
        """Whether the loudest frame is below -60 dB."""
        return self.loudest < SILENT_DB


def signal_properties(waveform: np.ndarray, sample_rate: int) -> SignalProperties:
    """Return the properties of a waveform.

    Args:
        waveform: float, (L,), not empty.
        sample_rate: sample rate in Hz.
    """
    samples = np.asarray(waveform, dtype=np.float64)
    frame = min(len(samples), max(1, round(FRAME_SECONDS * sample_rate)))
    frames = len(samples) // frame
    power = np.square(samples[: frames * frame]).reshape(frames, frame).mean(axis=1)
    sound = np.flatnonzero(power >= power.max() * 10 ** (SOUND_DB / 10))
    return SignalProperties(
        seconds=len(samples) / sample_rate,
        level=_decibels(np.square(samples).mean()),
        noise_floor=_decibels(np.quantile(power, 0.1)),
        inner_floor=_decibels(np.quantile(power[sound[0] : sound[-1] + 1], 0.1)),
        loudest=_decibels(power.max()),
        clipped=float((np.abs(samples) >= 1 - 2**-15).mean()),
    )


def signal_metrics(properties: Mapping[str, np.ndarray], resampling: Resampling) -> list[Metric]:
    """Return the proportions of silent and of clipped clips, the mean level and the mean noise floors.

    Args:
        properties: the fields of :class:`SignalProperties`, arrays (clips,) by name.
        resampling: settings of the confidence intervals.
    """
    return [
        _proportion("silent", "Silent clips", properties["loudest"] < SILENT_DB),
        _proportion("clipped", "Clips that reach full scale", properties["clipped"] > 0),
        mean_metric("level", "Level (dB)", properties["level"], resampling),
        mean_metric("noise_floor", "Noise floor (dB)", properties["noise_floor"], resampling),
        mean_metric(
            "inner_floor", "Noise floor between first and last sound (dB)", properties["inner_floor"], resampling
        ),
    ]


def _proportion(key: str, title: str, condition: np.ndarray) -> Metric:
    interval = wilson_interval(int(condition.sum()), len(condition))
    return Metric(key, title, float(condition.mean()), interval, "lower")


def _decibels(power: float) -> float:
    return float(max(FLOOR_DB, 10 * np.log10(max(power, 1e-300))))
