"""Recordings of a word as others might have said and recorded it. All randomness comes from the given generator."""

import numpy as np

from sashimi_diffusion.training.classifier_config import AugmentationConfig

SAMPLE_RATE = 16000
LENGTH = 16000  # one second, what the classifiers hear

_FREQUENCIES = np.fft.rfftfreq(LENGTH, 1 / SAMPLE_RATE).astype(np.float32)
# Octaves above 1 kHz; below 60 Hz there is no speech, only rumble that a tilt would raise without end.
_OCTAVES = np.log2(np.maximum(_FREQUENCIES, 60) / 1000)
# Short spectra: windows of 32 ms, four to a window's length; their envelope is what the first 2 ms of the cepstrum say.
_FRAME, _HOP, _LIFTER = 512, 128, 32
_WINDOW = np.hanning(_FRAME + 1)[:-1].astype(np.float32)
_SUM_OF_SQUARES = 1.5  # of the windows that overlap at any sample
_MOST_CHANGE = 4.0  # nepers, 35 dB
_MARGIN = 800  # 50 ms: the soft sounds before and after the loud part of a word
_LONGEST_SILENCE = 1280  # 80 ms
_NARROWEST_BAND, _WIDEST_BAND = 100, 500  # Hz
_BAND_GAIN = 0.03


def augment(waveform: np.ndarray, config: AugmentationConfig, random: np.random.Generator) -> np.ndarray:
    """A recording (any length) at 16 kHz as one second of it, changed as ``config`` allows.

    Returns:
        float32, shape (16000,).
    """
    if config.formants > 1:
        waveform = with_formants(waveform, config.formants ** random.uniform(-1, 1))
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


def with_formants(waveform: np.ndarray, factor: float) -> np.ndarray:
    """With formants ``factor`` times as high at the same pitch and pace, as from a mouth of another size: float32.

    The envelope of every short spectrum, smoothed by its cepstrum (Oppenheim and Schafer 1968), is stretched.
    """
    length = len(waveform)
    n_frames = -(-(length + _FRAME) // _FRAME) * (_FRAME // _HOP)
    padded = np.zeros(n_frames * _HOP + _FRAME, dtype=np.float32)
    padded[_FRAME : _FRAME + length] = waveform
    frames = np.lib.stride_tricks.sliding_window_view(padded, _FRAME)[::_HOP][:n_frames]
    spectra = np.fft.rfft(frames * _WINDOW)  # (frames, bins)
    envelopes = _envelopes(spectra)
    places = np.arange(_FRAME // 2 + 1) / factor
    below = np.minimum(places.astype(int), _FRAME // 2 - 1)
    share = np.minimum(places - below, 1)
    stretched = (1 - share) * envelopes[:, below] + share * envelopes[:, below + 1]
    gains = np.exp(np.clip(stretched - envelopes, -_MOST_CHANGE, _MOST_CHANGE))
    changed = np.fft.irfft(gains * spectra) * (_WINDOW / _SUM_OF_SQUARES)
    total = np.zeros_like(padded)
    for first in range(_FRAME // _HOP):  # frames that lie end to end, all at once
        row = changed[first :: _FRAME // _HOP].ravel()
        total[first * _HOP : first * _HOP + row.size] += row
    return total[_FRAME : _FRAME + length]


def _envelopes(spectra: np.ndarray) -> np.ndarray:
    """The smooth part of the logarithms of magnitudes (frames, bins), in nepers."""
    cepstra = np.fft.irfft(np.log(np.abs(spectra) + 1e-5))
    cepstra[:, _LIFTER : _FRAME - _LIFTER + 1] = 0
    return np.fft.rfft(cepstra).real


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
