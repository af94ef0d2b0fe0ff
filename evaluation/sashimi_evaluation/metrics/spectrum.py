"""The long-term average spectrum: its distance from that of the reference, its excess at the top, and single lines."""

import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sashimi_evaluation.metrics.frames import sounding_frames
from sashimi_evaluation.metrics.intervals import Resampling
from sashimi_evaluation.metrics.metric import Better, Metric, mean_metric

FRAME_SECONDS = 0.064
BIN_HZ = 1 / FRAME_SECONDS
"""Distance of the bins of a spectrum in Hz."""
BINS = round(8000 / BIN_HZ) + 1
"""Number of bins up to 8 kHz; frequencies above are not compared."""
BAND_HZ = 100
"""Width in Hz of the bands in which spectra are compared; the lowest begins at 100 Hz."""
UPPER_BANDS = ((3500, 4000), (4000, 8000))
LINES = (1000.0, 2000.0, 3000.0)
"""The frequencies in Hz at which lines are looked for, unless others are given."""
_NEIGHBORS = np.concatenate([np.arange(-10, -3), np.arange(4, 11)])  # in bins: 62 to 156 Hz away
_FLOOR = 1e-15  # 150 dB below full scale, far below the noise of 16 bits


def clip_spectrum(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return the long-term average spectrum of one clip: the mean level of its sounding frames of 64 ms, in dB.

    Args:
        waveform: float, (L,), not empty.
        sample_rate: sample rate in Hz.

    Returns:
        float32, (513,), at multiples of 15.625 Hz up to 8 kHz, in dB; a sine of full scale has 0 dB. NaN above half the
        sample rate, and everywhere without a sounding frame.
    """
    spectrum = np.full(BINS, np.nan, dtype=np.float32)
    frames = sounding_frames(waveform, sample_rate, FRAME_SECONDS)
    if len(frames.starts):
        amplitudes = frames.power()[:, ::2] * (4 / frames.length) ** 2  # a Hann window has the mean 1 / 2
        levels = 10 * np.log10(np.maximum(amplitudes, _FLOOR)).mean(axis=0)[:BINS]
        spectrum[: len(levels)] = levels
    return spectrum


def long_term_spectrum(spectra: np.ndarray) -> np.ndarray:
    """Return the long-term average spectrum of a set of clips: the mean of their levels in dB.

    Args:
        spectra: spectra of the clips, see :func:`clip_spectrum`, float (clips, bins). Clips of NaN are left out.

    Returns:
        Level of each band of 100 Hz from 100 Hz on, in dB relative to the mean of all bands, float64 (bands,); up to
        the lowest half sample rate of the clips. Empty if no clip sounds.
    """
    sounding = _sounding(spectra)
    return _matched(_bands(sounding, _complete(sounding))) if len(sounding) else np.empty(0)


def spectrum_metrics(
    reference: Mapping[str, np.ndarray],
    properties: Mapping[str, np.ndarray],
    resampling: Resampling,
    lines: Sequence[float] = LINES,
) -> list[Metric]:
    """Return the distance of the spectrum from the reference's, its excess above 3.5 kHz, and the levels of lines.

    Spectra are those of :func:`long_term_spectrum`, in the bands that all clips of both sets have. The distance is the
    root mean square of the differences of the bands in dB. The excess is their mean in 3.5-4 kHz and in 4-8 kHz. The
    level of a line is that of its bin above the bins 62 to 156 Hz beside it, in dB. Lines at multiples of the sample
    rate divided by the size of a pool are artefacts of pooling.

    Args:
        reference: properties of the real clips; ``spectrum`` has the spectra of :func:`clip_spectrum`, (clips, 513).
        properties: properties of the clips to evaluate.
        resampling: settings of the confidence intervals.
        lines: frequencies of lines in Hz; those that the clips do not have are left out.
    """
    real, spectra = _sounding(reference["spectrum"]), _sounding(properties["spectrum"])
    resampling = resampling.where(_sounds(properties["spectrum"]), _sounds(reference["spectrum"]))
    if not (len(real) and len(spectra)):
        return []
    bins = min(_complete(real), _complete(spectra))
    both = _bands(real, bins), _bands(spectra, bins)
    if not both[0].size:
        return []

    def compared(key: str, title: str, summary: Callable[[np.ndarray], float], better: Better) -> Metric:
        def statistic(real: np.ndarray, spectra: np.ndarray) -> float:
            return float(summary(_matched(spectra) - _matched(real)))

        return Metric(key, title, statistic(*both), resampling.interval(statistic, *both), better)

    title = "Long-term spectrum, distance from the reference (dB)"
    metrics = [compared("spectrum_distance", title, lambda gaps: np.sqrt(np.square(gaps).mean()), "lower")]
    for low, high in UPPER_BANDS:
        part = slice(low // BAND_HZ - 1, high // BAND_HZ - 1)
        if part.stop <= both[0].shape[1]:
            title = f"Long-term spectrum, excess in {low / 1000:g}-{high / 1000:g} kHz (dB)"
            metrics.append(compared(f"excess_{low}_{high}", title, _mean_of(part), ""))
    for line in lines:
        around = round(line / BIN_HZ) + _NEIGHBORS
        if around[0] >= 0 and around[-1] < _complete(spectra):
            levels = spectra[:, round(line / BIN_HZ)] - spectra[:, around].mean(axis=1)
            metrics.append(mean_metric(f"line_{line:g}", f"Line at {line:g} Hz (dB)", levels, resampling))
    return metrics


def _mean_of(part: slice) -> Callable[[np.ndarray], float]:
    return lambda gaps: float(gaps[part].mean())


def _sounding(spectra: np.ndarray) -> np.ndarray:
    """Return the spectra of the clips that have a sounding frame, float64 (clips, bins)."""
    return spectra[_sounds(spectra)].astype(np.float64)


def _sounds(spectra: np.ndarray) -> np.ndarray:
    return np.isfinite(spectra[:, 0])


def _complete(spectra: np.ndarray) -> int:
    """Return the number of bins, from 0 Hz on, that all clips have."""
    return int(np.isfinite(spectra).all(axis=0).sum())


def _bands(spectra: np.ndarray, bins: int) -> np.ndarray:
    """Return the mean level of the bins of each band of each clip in dB, (clips, bands)."""
    edges = np.ceil(np.arange(BAND_HZ, (bins - 1) * BIN_HZ + 1, BAND_HZ) / BIN_HZ).astype(int)
    parts = [spectra[:, low:high].mean(axis=1) for low, high in itertools.pairwise(edges)]
    return np.stack(parts, axis=1) if parts else np.empty((len(spectra), 0))


def _matched(bands: np.ndarray) -> np.ndarray:
    """Return the mean level of each band over the clips, relative to the mean of all bands, in dB, (bands,)."""
    levels = bands.mean(axis=0)
    return levels - levels.mean() if len(levels) else levels
