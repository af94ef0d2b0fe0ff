"""Properties of the waveform: level, noise floor, length of the sound, silence and clipping."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sashimi_evaluation.metrics.intervals import Resampling
from sashimi_evaluation.metrics.metric import Metric, mean_metric

FLOOR_DB = -120.0
"""The lowest level that is reported, in dB relative to full scale."""
SILENT_DB = -60.0
"""A clip is silent if the level of its loudest frame is below this, in dB relative to full scale."""
FRAME_SECONDS = 0.02
SOUND_DB = -40.0
"""The sound of a clip lasts from the first to the last frame above this level, in dB relative to the loudest frame."""
WORD_DB = -30.0
"""The same for the length of the word. It is higher, so that noise after the word does not count."""


@dataclass(frozen=True)
class SignalProperties:
    """Properties of one waveform. Levels are in dB relative to full scale, which is 1.0, and at least -120 dB.

    Args:
        seconds: duration in seconds.
        level: root mean square of the waveform in dB.
        noise_floor: 10 % quantile of the levels of frames of 20 ms, in dB. Digital silence at the beginning and at the
            end, which is padding, is left out.
        inner_floor: noise floor between the first and the last frame within 40 dB of the loudest frame, in dB. It
            excludes the silence before and after a word.
        loudest: level of the loudest frame in dB.
        word_seconds: time from the first to the last frame within 30 dB of the loudest frame; 0 for a silent clip.
        clipped: fraction of the audio samples at or beyond the full scale of 16 bits, from 0 to 1.
    """

    seconds: float
    level: float
    noise_floor: float
    inner_floor: float
    loudest: float
    word_seconds: float
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
    power = _frame_powers(samples, frame)
    sound, word = (_extent(power >= power.max() * 10 ** (level / 10)) for level in (SOUND_DB, WORD_DB))
    loudest = _decibels(power.max())
    return SignalProperties(
        seconds=len(samples) / sample_rate,
        level=_decibels(np.square(samples).mean()),
        noise_floor=_decibels(np.quantile(_frame_powers(samples[_extent(samples != 0)], frame), 0.1)),
        inner_floor=_decibels(np.quantile(power[sound], 0.1)),
        loudest=loudest,
        word_seconds=(word.stop - word.start) * frame / sample_rate if loudest >= SILENT_DB else 0.0,
        clipped=float((np.abs(samples) >= 1 - 2**-15).mean()),
    )


def signal_metrics(properties: Mapping[str, np.ndarray], resampling: Resampling) -> list[Metric]:
    """Return the proportions of silent and of clipped clips, and the mean level, noise floors and length of the word.

    Args:
        properties: the fields of :class:`SignalProperties`, arrays (clips,) by name.
        resampling: settings of the confidence intervals.
    """
    return [
        _proportion("silent", "Silent clips", properties["loudest"] < SILENT_DB, resampling),
        _proportion("clipped", "Clips that reach full scale", properties["clipped"] > 0, resampling),
        mean_metric("level", "Level (dB)", properties["level"], resampling),
        mean_metric("noise_floor", "Noise floor (dB)", properties["noise_floor"], resampling),
        mean_metric(
            "inner_floor", "Noise floor between first and last sound (dB)", properties["inner_floor"], resampling
        ),
        mean_metric("word_seconds", "Length from first to last sound (s)", properties["word_seconds"], resampling),
    ]


def _proportion(key: str, title: str, condition: np.ndarray, resampling: Resampling) -> Metric:
    share = float(condition.mean())
    return Metric(key, title, share, resampling.proportion(share, len(condition)), "lower")


def _frame_powers(samples: np.ndarray, frame: int) -> np.ndarray:
    """Return the mean square of each frame, (frames,); an incomplete last frame counts only if it is the only one."""
    frame = min(frame, len(samples))
    frames = len(samples) // frame
    return np.square(samples[: frames * frame]).reshape(frames, frame).mean(axis=1)


def _extent(condition: np.ndarray) -> slice:
    """Return the part from the first to the last true value; everything if there is none."""
    places = np.flatnonzero(condition)
    return slice(int(places[0]), int(places[-1]) + 1) if len(places) else slice(0, len(condition))


def _decibels(power: float) -> float:
    return float(max(FLOOR_DB, 10 * np.log10(max(power, 1e-300))))
