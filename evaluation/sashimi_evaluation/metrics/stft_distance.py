"""Multi-resolution STFT distance between a generated waveform and the recording that it should equal."""

from dataclasses import dataclass

import numpy as np

RESOLUTIONS = ((512, 240, 50), (1024, 600, 120), (2048, 1200, 240))
"""Fourier transform, window and hop in samples of each resolution: those of Parallel WaveGAN (arXiv 1910.11480)."""
FLOOR = 1e-7
"""Smaller powers of a bin are replaced by this one."""
_BLOCK = 4096  # frames whose spectra are in memory at a time


@dataclass(frozen=True)
class StftDistance:
    """Distance between the magnitudes of two spectrograms, mean over ``RESOLUTIONS``.

    Args:
        convergence: spectral convergence, the norm of the difference of the magnitudes divided by the norm of those of
            the recording (Frobenius norms).
        log_magnitude: mean absolute difference of the natural logarithms of the magnitudes.
    """

    convergence: float
    log_magnitude: float

    @property
    def total(self) -> float:
        """The sum of both, the loss of Parallel WaveGAN."""
        return self.convergence + self.log_magnitude


def stft_distance(generated: np.ndarray, recording: np.ndarray) -> StftDistance:
    """Return the multi-resolution STFT distance of two waveforms of the same length and rate.

    Args:
        generated: float, (L,).
        recording: float, (L,).

    Returns:
        The distance; the convergence is NaN for a silent recording.
    """
    parts = [_of_resolution(generated, recording, *resolution) for resolution in RESOLUTIONS]
    convergence, log_magnitude = np.mean(parts, axis=0)
    return StftDistance(float(convergence), float(log_magnitude))


def _of_resolution(
    generated: np.ndarray, recording: np.ndarray, n_fft: int, window: int, hop: int
) -> tuple[float, float]:
    """Return the spectral convergence and the difference of the logarithms for one resolution."""
    frames = [_frames(np.asarray(one, dtype=np.float64), window, hop) for one in (generated, recording)]
    hann = np.square(np.sin(np.pi * np.arange(window) / window))
    difference = energy = logarithms = bins = 0.0
    for first in range(0, len(frames[0]), _BLOCK):
        spectra = [np.fft.rfft(one[first : first + _BLOCK] * hann, n_fft, axis=1) for one in frames]
        mine, real = (np.sqrt(np.maximum(np.square(np.abs(one)), FLOOR)) for one in spectra)
        difference += np.square(mine - real).sum()
        energy += np.square(real)[real > FLOOR**0.5].sum()
        logarithms += np.abs(np.log(mine / real)).sum()
        bins += mine.size
    return np.sqrt(difference / energy) if energy else np.nan, logarithms / bins


def _frames(samples: np.ndarray, window: int, hop: int) -> np.ndarray:
    """Return the frames of a waveform that is padded with half a window of zeros at both ends, (frames, window)."""
    padded = np.pad(samples, window // 2)
    padded = np.pad(padded, (0, max(0, window - len(padded))))
    return np.lib.stride_tricks.sliding_window_view(padded, window)[::hop]
