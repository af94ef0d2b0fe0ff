"""Short frames of a waveform and their power spectra, which the statistics of voice and spectrum use."""

from dataclasses import dataclass

import numpy as np

HOP_SECONDS = 0.01
SOUNDING_DB = -40.0
"""A frame sounds if its level is above this, in dB relative to the loudest frame of its clip."""
_SILENCE = 1e-6  # mean square of a frame; 60 dB below full scale, as for a silent clip


@dataclass(frozen=True)
class SoundingFrames:
    """The sounding frames of one clip, every 10 ms.

    Args:
        samples: the waveform, float64 (L,).
        starts: first sample of each sounding frame, int64 (frames,); empty if the clip is silent.
        length: samples in a frame.
        sample_rate: sample rate in Hz.
    """

    samples: np.ndarray
    starts: np.ndarray
    length: int
    sample_rate: int

    @property
    def frequencies(self) -> np.ndarray:
        """Frequency of each bin of :meth:`power` in Hz, float64 (bins,)."""
        return np.fft.rfftfreq(2 * self.length, 1 / self.sample_rate)

    def power(self, band: tuple[float, float] | None = None) -> np.ndarray:
        """Return the power spectrum of each frame under a Hann window, on twice its length, float64 (frames, bins).

        Args:
            band: frequencies in Hz, from low to below high. The waveform is limited to them before it is cut into
                frames, so that a harmonic near an edge is in one band only. None: all frequencies.
        """
        samples = self.samples if band is None else _band_passed(self.samples, self.sample_rate, *band)
        frames = np.lib.stride_tricks.sliding_window_view(samples, self.length)[self.starts]
        return np.square(np.abs(np.fft.rfft(frames * _hann(self.length), 2 * self.length, axis=1)))


def sounding_frames(waveform: np.ndarray, sample_rate: int, seconds: float) -> SoundingFrames:
    """Return the frames of a waveform within 40 dB of its loudest frame.

    Args:
        waveform: float, (L,), not empty; one shorter than a frame is padded with zeros.
        sample_rate: sample rate in Hz.
        seconds: duration of a frame.
    """
    length, hop = max(1, round(seconds * sample_rate)), max(1, round(HOP_SECONDS * sample_rate))
    samples = np.pad(np.asarray(waveform, dtype=np.float64), (0, max(0, length - len(waveform))))
    starts = np.arange(0, len(samples) - length + 1, hop)
    energies = np.concatenate([[0.0], np.cumsum(np.square(samples))])
    levels = (energies[starts + length] - energies[starts]) / length
    sounding = levels > max(_SILENCE, levels.max() * 10 ** (SOUNDING_DB / 10))
    return SoundingFrames(samples, starts[sounding], length, sample_rate)


def window_correlation(lags: np.ndarray, length: int) -> np.ndarray:
    """Return the normalized autocorrelation of the Hann window of ``length`` samples at ``lags``, in samples.

    Dividing the autocorrelation of a windowed frame by it gives that of the signal (Boersma 1993, "Accurate short-term
    analysis of the fundamental frequency and the harmonics-to-noise ratio of a sampled sound", equation 9).
    """
    part = np.abs(lags) / length
    return (1 - part) * (2 + np.cos(2 * np.pi * part)) / 3 + np.sin(2 * np.pi * part) / (2 * np.pi)


def _hann(length: int) -> np.ndarray:
    return np.square(np.sin(np.pi * (np.arange(length) + 0.5) / length))


def _band_passed(samples: np.ndarray, sample_rate: int, low: float, high: float) -> np.ndarray:
    size = 1 << (len(samples) + sample_rate // 50).bit_length()  # fast, and the end does not ring into the beginning
    frequencies = np.fft.rfftfreq(size, 1 / sample_rate)
    first, last = np.searchsorted(frequencies, [low, high])
    spectrum = np.fft.rfft(samples, size)
    spectrum[:first] = spectrum[last:] = 0
    return np.fft.irfft(spectrum, size)[: len(samples)]
