"""Mel-cepstral distortion between a generated waveform and the recording that it should equal."""

import numpy as np
import torch

from sashimi_diffusion.data.mel import LogMel

COEFFICIENTS = 13
"""The cepstral coefficients 1 to 13 are compared; the zeroth one, the level, is not."""
BANDS = 40
HIGHEST_HZ = 8000.0
WINDOW_SECONDS, HOP_SECONDS = 0.025, 0.01
SOUNDING_DB = -40.0
"""Frames of the recording below this level, relative to its loudest frame, are left out."""
_LEAST_FFT = 2048  # so that the narrowest band has a bin
_FLOOR = 1e-5


def mel_cepstral_distortion(generated: np.ndarray, recording: np.ndarray, sample_rate: int) -> float:
    """Return the mel-cepstral distortion in dB: 10 / ln 10 · sqrt(2 Σ (c_k - c'_k)²), mean over the sounding frames.

    The cepstrum of a frame is the cosine transform of the logarithms of 40 mel bands (Slaney's scale, 0 Hz to 8 kHz or
    half the sample rate, magnitudes, windows of 25 ms every 10 ms), with the factor 2 / 40, so that the logarithm of
    the envelope is the sum of c_k cos(k ω). The distortion is then the root mean square difference of the smoothed
    envelopes in dB, without their level. Frames are compared at the same time, without dynamic time warping, because a
    vocoder keeps the timing of its spectrogram. Values from another kind of cepstrum are not comparable.

    Args:
        generated: float, (L,).
        recording: float, (L,).
        sample_rate: sample rate of both in Hz.

    Returns:
        The distortion; NaN for a silent recording.
    """
    mine, real = (_log_mel(one, sample_rate) for one in (generated, recording))
    levels = 10 * np.log10(np.exp(2 * real).mean(axis=1))
    sounding = (levels > levels.max() + SOUNDING_DB) & (real.max(axis=1) > np.log(2 * _FLOOR))
    if not sounding.any():
        return float("nan")
    orders, bands = np.arange(1, COEFFICIENTS + 1), np.arange(BANDS) + 0.5
    transform = 2 / BANDS * np.cos(np.pi / BANDS * np.outer(bands, orders))  # (bands, coefficients)
    differences = (mine - real)[sounding] @ transform
    return float(np.mean(10 / np.log(10) * np.sqrt(2 * np.square(differences).sum(axis=1))))


def _log_mel(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return the natural logarithms of the mel bands, float64 (frames, bands)."""
    window = round(WINDOW_SECONDS * sample_rate)
    n_fft = max(_LEAST_FFT, 1 << (window - 1).bit_length())
    transform = LogMel(
        sample_rate,
        n_fft,
        round(HOP_SECONDS * sample_rate),
        BANDS,
        f_max=min(HIGHEST_HZ, sample_rate / 2),
        win_length=window,
        floor=_FLOOR,
    )
    padded = np.pad(np.asarray(waveform, dtype=np.float32), (0, max(0, transform.shortest - len(waveform))))
    return transform(torch.from_numpy(padded)[None])[0].T.double().numpy()
