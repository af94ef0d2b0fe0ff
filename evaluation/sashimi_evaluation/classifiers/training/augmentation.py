"""Recordings of a word as others might have said and recorded it. All randomness comes from the given generator."""

import numpy as np

from sashimi_evaluation.classifiers.training.config import AugmentationConfig

SAMPLE_RATE = 16000
LENGTH = 16000  # one second, what the classifiers hear

_FREQUENCIES = np.fft.rfftfreq(LENGTH, 1 / SAMPLE_RATE).astype(np.float32)
# Octaves above 1 kHz; below 60 Hz there is no speech, only rumble that a tilt would raise without end.
_OCTAVES = np.log2(np.maximum(_FREQUENCIES, 60) / 1000)
_MARGIN = 800  # 50 ms: the soft sounds before and after the loud part of a word
_LONGEST_SILENCE = 1280  # 80 ms
_NARROWEST_BAND, _WIDEST_BAND = 100, 500  # Hz
_BAND_GAIN = 0.03


def augment(waveform: np.ndarray, config: AugmentationConfig, random: np.random.Generator) -> np.ndarray:
    """A recording (any length) at 16 kHz as one second of it, changed as ``config`` allows.

    Returns:
        float32, shape (16000,).
    """
    waveform = at_speed(waveform, config.speed ** random.uniform(-1, 1))
    window = coloured(placed(waveform, random), config, random)
    if random.random() < config.mask_share:
        start = random.integers(LENGTH)
        window[start : start + random.integers(_LONGEST_SILENCE + 1)] = 0
    return window * np.float32(10 ** (config.gain_db * random.uniform(-1, 1) / 20))


def at_speed(waveform: np.ndarray, factor: float) -> np.ndarray:
    """Played ``factor`` times as fast; pitch and formants move with it, as from a smaller speaker.

    Linear interpolation: what it does wrong lies at high frequencies, and sounds like a poor recorder.
    """
    places = np.arange(0, len(waveform) - 1e-9, factor)
    return np.interp(places, np.arange(len(waveform)), waveform).astype(np.float32)


def placed(waveform: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The word anywhere within one second, where it fits whole: float32 (16000,), zeros around the recording."""
    first, last = loud_part(waveform)
    # Where the second may begin, counted in samples of the recording.
    earliest, latest = last - LENGTH, first
    start = int(random.integers(earliest, latest + 1)) if earliest <= latest else first
    window = np.zeros(LENGTH, dtype=np.float32)
    heard = waveform[max(0, start) : start + LENGTH]
    offset = max(0, -start)
    window[offset : offset + len(heard)] = heard
    return window


def loud_part(waveform: np.ndarray) -> tuple[int, int]:
    """Where the middle 98 % of the energy are, with a margin: first sample, and the one behind the last."""
    energy = np.cumsum(np.square(waveform, dtype=np.float64))
    first, last = np.searchsorted(energy, [0.01 * energy[-1], 0.99 * energy[-1]])
    return max(0, int(first) - _MARGIN), min(len(waveform), int(last) + _MARGIN)


def coloured(window: np.ndarray, config: AugmentationConfig, random: np.random.Generator) -> np.ndarray:
    """Through another microphone, line and room: tilt, band-pass, a missing band and noise. float32 (16000,)."""
    spectrum = np.fft.rfft(window)
    energy = np.square(np.abs(spectrum)).sum()
    gain = 10 ** (config.tilt_db * random.uniform(-1, 1) * _OCTAVES / 20)
    if random.random() < config.filter_share:
        gain *= _band_pass(random.uniform(50, 400), random.uniform(2500, 7000))
    if random.random() < config.mask_share:
        width = random.uniform(_NARROWEST_BAND, _WIDEST_BAND)
        start = random.uniform(0, 4000)
        gain[(start <= _FREQUENCIES) & (start + width > _FREQUENCIES)] *= _BAND_GAIN
    spectrum *= gain
    if random.random() < config.noise_share:
        noise = _noise(random)
        wanted = np.square(np.abs(spectrum)).sum() * 10 ** (-random.uniform(*config.noise_db) / 10)
        spectrum += noise * np.sqrt(wanted / np.square(np.abs(noise)).sum())
    # Filtering must not leave a word below the floors of the mels.
    level = np.sqrt(energy / max(np.square(np.abs(spectrum)).sum(), np.finfo(np.float32).tiny))
    return (np.fft.irfft(spectrum, LENGTH) * level).astype(np.float32)


def _band_pass(low: float, high: float) -> np.ndarray:
    """Magnitudes of Butterworth slopes of fourth order around the band from ``low`` to ``high`` Hz."""
    rising = np.maximum(_FREQUENCIES, 1) / low
    return 1 / np.sqrt((1 + rising**-8.0) * (1 + (_FREQUENCIES / high) ** 8))


def _noise(random: np.random.Generator) -> np.ndarray:
    """The spectrum of a second of noise: white, pink, brown or in between."""
    parts = random.standard_normal((2, len(_FREQUENCIES)), dtype=np.float32)
    return (parts[0] + 1j * parts[1]) * np.exp2(-random.uniform(0, 1) * _OCTAVES)
