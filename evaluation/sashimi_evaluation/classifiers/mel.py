"""Mel spectrograms: the inputs of the classifiers."""

import math

import numpy as np
import torch
from torch import Tensor, nn

SAMPLE_RATE = 16000
"""Sample rate of the input of both classifiers, in Hz."""


def mel_bands(count: int, n_fft: int, f_min: float, f_max: float) -> Tensor:
    """Return triangular filters of unit area on Slaney's mel scale (Auditory Toolbox, 1998), as in librosa.

    The centers are evenly spaced on the mel scale, which is linear up to 1 kHz (15 mels) and logarithmic above (27 mels
    for a factor of 6.4).

    Args:
        count: number of bands.
        n_fft: samples in a window, at 16 kHz.
        f_min: lower edge of the first band in Hz.
        f_max: upper edge of the last band in Hz.

    Returns:
        float32, shape (count, n_fft // 2 + 1).
    """
    log_step = math.log(6.4) / 27

    def to_mel(frequency: float) -> float:
        return frequency * 0.015 if frequency < 1000 else 15 + math.log(frequency / 1000) / log_step

    mels = np.linspace(to_mel(f_min), to_mel(f_max), count + 2)
    edges = np.where(mels < 15, mels / 0.015, 1000 * np.exp(log_step * (mels - 15)))
    lower, center, upper = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    frequencies = np.linspace(0, SAMPLE_RATE / 2, n_fft // 2 + 1)
    rising, falling = (frequencies - lower) / (center - lower), (upper - frequencies) / (upper - center)
    bands = np.maximum(0, np.minimum(rising, falling)) * (2 / (upper - lower))
    return torch.from_numpy(bands.astype(np.float32))


class PowerMel(nn.Module):
    """Mel power spectrogram with periodic Hann windows, centered frames and zero padding at both ends.

    It is computed in float32 also under autocast, because the range of the power exceeds that of half precision.

    Args:
        count: number of bands.
        window: samples in a window, at 16 kHz.
        n_fft: samples of the transform, at least ``window``; the window is padded with zeros on both sides.
        hop: samples from one frame to the next.
        f_min: lower edge of the first band in Hz.
        f_max: upper edge of the last band in Hz.
    """

    bands: Tensor
    window: Tensor

    def __init__(self, count: int, window: int, n_fft: int, hop: int, f_min: float, f_max: float) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.register_buffer("bands", mel_bands(count, n_fft, f_min, f_max), persistent=False)
        self.register_buffer("window", torch.hann_window(window), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """Map waveforms (B, 1, L) to powers (B, count, 1 + L // hop)."""
        with torch.autocast(waveform.device.type, enabled=False):
            spectrum = torch.stft(
                waveform[:, 0].float(),
                self.n_fft,
                hop_length=self.hop,
                win_length=len(self.window),
                window=self.window,
                pad_mode="constant",
                return_complex=True,
            )
            return self.bands @ (spectrum.real.square() + spectrum.imag.square())


def decibels_below_peak(power: Tensor, smallest: float, floor: float) -> Tensor:
    """Convert powers (B, ...) to dB relative to the maximum of each batch element, clamped to ``floor`` from below.

    Powers are clamped to ``smallest`` first, so digital silence is 0 dB everywhere. This is librosa's power_to_db with
    ``ref=max``.

    Args:
        power: powers, real (B, ...).
        smallest: lower bound of the powers.
        floor: lower bound of the result in dB.
    """
    level = power.clamp(min=smallest)
    peak = level.amax(dim=tuple(range(1, level.ndim)), keepdim=True)
    return (10 * (level.log10() - peak.log10())).clamp(min=floor)


class ProtocolMel(nn.Module):
    """Input of the classifier of the SC09 protocol: 32 mel bands and 32 frames, in dB relative to the maximum.

    It is equal to librosa's melspectrogram with the default settings (windows of 2048 samples, hop 512, power, up to
    8 kHz) followed by power_to_db (``ref=max``, 80 dB), as used for the results of SaShiMi (arXiv 2202.09729).
    """

    def __init__(self) -> None:
        super().__init__()
        self.power = PowerMel(32, window=2048, n_fft=2048, hop=512, f_min=0.0, f_max=SAMPLE_RATE / 2)

    def forward(self, waveform: Tensor) -> Tensor:
        """Map waveforms (B, 1, 16000) at 16 kHz to levels (B, 1, 32, 32), from -80 to 0 dB."""
        return decibels_below_peak(self.power(waveform), smallest=1e-10, floor=-80.0)[:, None]


class RelativeMel(nn.Module):
    """Input of the small classifier: a mel spectrogram of the telephone band, independent of the level.

    It has 32 bands and windows of 25 ms every 10 ms, the input of :class:`.SpeechEmbedding`. Levels are in units of
    10 dB. Those of each clip are shifted so that the maximum is ``peak``, the level of loud speech. The bands end at
    3.8 kHz, because most of the training recordings contain nothing above 4 kHz: higher frequencies would identify the
    data set instead of the word, and the results for clips of 8 kHz and 16 kHz would differ.
    """

    peak = 11.0
    floor = 5.0  # 60 dB below the peak

    def __init__(self) -> None:
        super().__init__()
        self.power = PowerMel(32, window=400, n_fft=512, hop=160, f_min=60.0, f_max=3800.0)

    def forward(self, waveform: Tensor) -> Tensor:
        """Map waveforms (B, 1, L) at 16 kHz to levels (B, 1, 32, 1 + L // 160) from ``floor`` to ``peak``."""
        depth = 10 * (self.floor - self.peak)
        return self.peak + decibels_below_peak(self.power(waveform), smallest=1e-12, floor=depth)[:, None] / 10
