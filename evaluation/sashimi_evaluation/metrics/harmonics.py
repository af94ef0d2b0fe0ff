"""Voice: the share of voiced frames, and the harmonics-to-noise ratio in bands of frequency."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from sashimi_evaluation.metrics.frames import SoundingFrames, sounding_frames, window_correlation
from sashimi_evaluation.metrics.intervals import Resampling
from sashimi_evaluation.metrics.metric import Metric, mean_metric

BANDS = ((0, 1000), (1000, 2000), (2000, 3000), (3000, 4000), (4000, 8000))
"""The bands of the harmonics-to-noise ratio in Hz; a clip has those up to half its sample rate."""
FRAME_SECONDS = 0.04
PITCH_HZ = (70.0, 400.0)
VOICED = 2 / 3
"""A frame is voiced if the autocorrelation of its part below 1 kHz is at least this at the period of the pitch: the
harmonics have twice the power of the noise, 3 dB."""
_PITCH_BAND = (50.0, 1000.0)
_OCTAVE_COST = 0.05  # of the autocorrelation, for each octave below 400 Hz: a period is preferred to its multiples
LIMITS_DB = (-20.0, 30.0)
"""The range of the ratio: below it, harmonics do not differ from the error of the estimate."""
_LEAKAGE_HZ = 200.0  # a Hann window spreads the power of a band by less than this beyond its edges
_FAINT = 1e-10  # mean square of a part of a frame that is no more than rounding, 100 dB below full scale


@dataclass(frozen=True)
class HarmonicProperties:
    """The voice of one clip.

    Args:
        voiced_share: voiced frames divided by sounding frames, from 0 to 1; NaN without a sounding frame, for a clip
            shorter than a frame, 40 ms, and for a sample rate below 2 kHz.
        periodicity: share of the power in each of ``BANDS`` that repeats after one period of the pitch, mean over the
            voiced frames, float64 (5,). It may be slightly negative for noise. NaN for a band that the sample rate does
            not have, and without a voiced frame.
    """

    voiced_share: float
    periodicity: np.ndarray


def harmonic_properties(waveform: np.ndarray, sample_rate: int) -> HarmonicProperties:
    """Return the voiced share and the periodicity of each band of one clip.

    The pitch period of a frame, from 70 to 400 Hz, is the lag with the highest autocorrelation of the part from 50 Hz
    to 1 kHz (Boersma 1993). Frames with an autocorrelation of at least 2/3 there are voiced. The periodicity of a
    band is the normalized autocorrelation, at that lag, of the waveform limited to the band. It is the power of
    the harmonics divided by the power of harmonics and noise, for a pitch that is constant within two periods; a pitch
    that glides or trembles counts as noise, and the more so, the higher the band.

    Args:
        waveform: float, (L,), not empty.
        sample_rate: sample rate in Hz.
    """
    empty = np.full(len(BANDS), np.nan)
    frames = sounding_frames(waveform, sample_rate, FRAME_SECONDS)
    if not len(frames.starts) or len(waveform) < frames.length or sample_rate < 2 * BANDS[0][1]:
        return HarmonicProperties(float("nan"), empty)
    lags, strengths = pitch_periods(frames)
    voiced = strengths >= VOICED
    if not voiced.any():
        return HarmonicProperties(0.0, empty)
    bands = [band for band in BANDS if 2 * band[1] <= sample_rate]
    voices = replace(frames, starts=frames.starts[voiced])
    means = [_band_periodicity(voices, band, lags[voiced]).mean() for band in bands]
    return HarmonicProperties(float(voiced.mean()), np.append(means, empty[len(means) :]))


def harmonics_to_noise(periodicity: np.ndarray) -> np.ndarray:
    """Return the harmonics-to-noise ratio in dB, between -20 and 30, of periodicities of any shape."""
    low, high = (1 / (1 + 10 ** (-limit / 10)) for limit in LIMITS_DB)
    share = np.clip(periodicity, low, high)
    return 10 * np.log10(share / (1 - share))


def harmonic_metrics(properties: Mapping[str, np.ndarray], resampling: Resampling) -> list[Metric]:
    """Return the voiced share, and the harmonics-to-noise ratio of each band that all clips have.

    The ratio of a set is that of the mean periodicity of its clips. The period comes from the part below 1 kHz, so
    noise above has the periodicity 0 and the lowest ratio, -20 dB. Estimators that search the best lag in each band
    find -9 to -4 dB in noise, and their values are not comparable with these. 300 held-out recordings of the Free
    Spoken Digit Dataset have 9.5, -3.8, -7.3 and -9.7 dB in the bands up to 4 kHz, and 69 % voiced frames.

    Args:
        properties: the fields of :class:`HarmonicProperties`, arrays (clips, ...) by name.
        resampling: settings of the confidence intervals.
    """
    share, periodicity = properties["voiced_share"], properties["periodicity"]
    sounding = np.isfinite(share)
    if not sounding.any():
        return []
    voiced = np.isfinite(periodicity[:, 0])
    of_voiced = resampling.where(voiced)
    metrics = [
        mean_metric("voiced", "Voiced share of the sounding frames", share[sounding], resampling.where(sounding))
    ]
    note = "" if voiced.all() else f"of the {int(voiced.sum())} of {len(voiced)} clips with a voiced frame"
    for number, (low, high) in enumerate(BANDS):
        values = periodicity[voiced, number]
        if len(values) and np.isfinite(values).all():
            interval = of_voiced.interval(_ratio_of_mean, values, low=LIMITS_DB[0], high=LIMITS_DB[1])
            title = f"Harmonics-to-noise ratio {low // 1000}-{high // 1000} kHz (dB)"
            key = f"hnr_{low // 1000}_{high // 1000}"
            metrics.append(Metric(key, title, _ratio_of_mean(values), interval, note=note))
    return metrics


def _ratio_of_mean(periodicity: np.ndarray) -> float:
    return float(harmonics_to_noise(periodicity.mean()))


def pitch_periods(frames: SoundingFrames) -> tuple[np.ndarray, np.ndarray]:
    """Return the pitch period of each frame in samples, float64 (frames,), and the autocorrelation there.

    A frame whose autocorrelation is at least ``VOICED`` is voiced; see :func:`harmonic_properties`.
    """
    shortest, longest = (round(frames.sample_rate / pitch) for pitch in reversed(PITCH_HZ))
    correlation = np.fft.irfft(frames.power(_PITCH_BAND), axis=1)[:, : longest + 2]
    lags = np.arange(shortest - 1, longest + 2)
    energy = np.maximum(correlation[:, :1], 1e-300)
    curve = correlation[:, lags] / energy / window_correlation(lags, frames.length)
    left, middle, right = curve[:, :-2], curve[:, 1:-1], curve[:, 2:]
    is_peak = (middle >= left) & (middle > right)
    scores = np.where(is_peak, middle - _OCTAVE_COST * np.log2(lags[1:-1] / shortest), -np.inf)
    best = scores.argmax(axis=1)
    rows = np.arange(len(best))
    before, top, after = left[rows, best], middle[rows, best], right[rows, best]
    bend = np.maximum(2 * top - before - after, 1e-12)
    shift = np.clip((after - before) / (2 * bend), -0.5, 0.5)
    audible = correlation[:, 0] > _FAINT * frames.length
    strengths = np.where(is_peak[rows, best] & audible, top, 0.0)
    return lags[1:-1][best] + shift, strengths


def _band_periodicity(frames: SoundingFrames, band: tuple[float, float], lags: np.ndarray) -> np.ndarray:
    """Return the share of the power of each frame in a band that repeats after a lag.

    The normalized autocorrelation is that of harmonics, which is 1, and that of noise, weighted by their powers. White
    noise limited to a band of a kilohertz still has a correlation of up to 0.1 at lags of a few milliseconds.

    Args:
        frames: the frames.
        band: frequencies in Hz.
        lags: the lag of each frame in samples, float64 (frames,).

    Returns:
        float64, (frames,).
    """
    (low, high), seconds = band, lags / frames.sample_rate
    part = slice(*np.searchsorted(frames.frequencies, [low - _LEAKAGE_HZ, high + _LEAKAGE_HZ]))
    power = frames.power(band)[:, part]
    waves = np.cos(2 * np.pi * seconds[:, None] * frames.frequencies[part])
    correlation = (power * waves).sum(axis=1) / np.maximum(power.sum(axis=1), 1e-300)
    correlation /= window_correlation(lags, frames.length)
    of_noise = np.sinc((high - low) * seconds) * np.cos(np.pi * (low + high) * seconds)
    return (correlation - of_noise) / (1 - of_noise)
