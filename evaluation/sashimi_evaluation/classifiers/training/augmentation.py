"""Random changes to the recording of a word: speed, level, position, filters and noise.

All random numbers come from the given generator.
"""

import numpy as np

from sashimi_evaluation.classifiers.training.config import AugmentationConfig

SAMPLE_RATE = 16000
LENGTH = 16000  # one second, the input of the classifiers

_FREQUENCIES = np.fft.rfftfreq(LENGTH, 1 / SAMPLE_RATE).astype(np.float32)
# Octaves above 1 kHz, constant below 60 Hz: speech has no energy there, and a tilt would only amplify rumble.
_OCTAVES = np.log2(np.maximum(_FREQUENCIES, 60) / 1000)
_MARGIN = 800  # 50 ms: includes quiet sounds before and after the loud part of a word
_LONGEST_SILENCE = 1280  # 80 ms
_NARROWEST_BAND, _WIDEST_BAND = 100, 500  # Hz
_BAND_GAIN = 0.03  # factor of the amplitude in the missing band


def augment(waveform: np.ndarray, config: AugmentationConfig, random: np.random.Generator) -> np.ndarray:
    """Return one second of a recording at 16 kHz with random changes, float32 (16000,).

    Args:
        waveform: the recording, (L,), of any length.
        config: the kinds and limits of the changes.
        random: the source of all random numbers.
    """
    waveform = at_speed(waveform, config.speed ** random.uniform(-1, 1))
    window = filtered(placed(waveform, random), config, random)
    if random.random() < config.mask_share:
        start = random.integers(LENGTH)
        window[start : start + random.integers(_LONGEST_SILENCE + 1)] = 0
    return window * np.float32(10 ** (config.gain_db * random.uniform(-1, 1) / 20))


def at_speed(waveform: np.ndarray, factor: float) -> np.ndarray:
    """Return the waveform (L,) played ``factor`` times as fast, with pitch and formants scaled by the same factor.

    Linear interpolation is exact enough here: its errors are at high frequencies, like those of a poor recorder.
    """
    places = np.arange(0, len(waveform) - 1e-9, factor)
    return np.interp(places, np.arange(len(waveform)), waveform).astype(np.float32)


def placed(waveform: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return the word at a random position in one second, complete if it fits: float32 (16000,), padded with zeros."""
    first, last = loud_part(waveform)
    # Limits of the start of the second, in samples of the recording.
    earliest, latest = last - LENGTH, first
    start = int(random.integers(earliest, latest + 1)) if earliest <= latest else first
    window = np.zeros(LENGTH, dtype=np.float32)
    part = waveform[max(0, start) : start + LENGTH]
    offset = max(0, -start)
    window[offset : offset + len(part)] = part
    return window


def loud_part(waveform: np.ndarray) -> tuple[int, int]:
    """Return start and end, in samples, of the middle 98 % of the energy, with a margin of 50 ms on both sides."""
    energy = np.cumsum(np.square(waveform, dtype=np.float64))
    first, last = np.searchsorted(energy, [0.01 * energy[-1], 0.99 * energy[-1]])
    return max(0, int(first) - _MARGIN), min(len(waveform), int(last) + _MARGIN)


def filtered(window: np.ndarray, config: AugmentationConfig, random: np.random.Generator) -> np.ndarray:
    """Return the window with random tilt, band-pass, missing band and noise, float32 (16000,)."""
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
        lowest, highest = config.noise_db
        noise_energy = np.square(np.abs(spectrum)).sum() * 10 ** (-random.uniform(lowest, highest) / 10)
        spectrum += noise * np.sqrt(noise_energy / np.square(np.abs(noise)).sum())
    # Restore the energy, so that a filtered word is not below the floor of the mel spectrogram.
    level = np.sqrt(energy / max(np.square(np.abs(spectrum)).sum(), np.finfo(np.float32).tiny))
    return (np.fft.irfft(spectrum, LENGTH) * level).astype(np.float32)


def _band_pass(low: float, high: float) -> np.ndarray:
    """Return the magnitudes of a band-pass from ``low`` to ``high`` Hz with Butterworth slopes of fourth order."""
    rising = np.maximum(_FREQUENCIES, 1) / low
    return 1 / np.sqrt((1 + rising**-8.0) * (1 + (_FREQUENCIES / high) ** 8))


def _noise(random: np.random.Generator) -> np.ndarray:
    """Return the spectrum of one second of noise, between white (flat) and brown (-6 dB per octave)."""
    parts = random.standard_normal((2, len(_FREQUENCIES)), dtype=np.float32)
    return (parts[0] + 1j * parts[1]) * np.exp2(-random.uniform(0, 1) * _OCTAVES)
