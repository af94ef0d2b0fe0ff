"""The mel spectrograms that the classifiers see."""

import math

import numpy as np
import torch
from torch import Tensor, nn

SAMPLE_RATE = 16000
"""Hz; both classifiers take waveforms at this rate."""


def mel_bands(count: int, n_fft: int, f_min: float, f_max: float) -> Tensor:
    """Triangular bands of unit area, spaced evenly on Slaney's mel scale (Auditory Toolbox, 1998) as librosa has it.

    The scale is linear up to 1 kHz (15 mels) and logarithmic above (27 mels for a factor of 6.4).

    Args:
        count: bands.
        n_fft: samples in a window, at 16 kHz.
        f_min: lower edge of the first band in Hz.
        f_max: upper edge of the last band in Hz.

    Returns:
        float32, shape (count, n_fft // 2 + 1).
    """
    step = math.log(6.4) / 27

    def to_mel(frequency: float) -> float:
        return frequency * 0.015 if frequency < 1000 else 15 + math.log(frequency / 1000) / step

    mels = np.linspace(to_mel(f_min), to_mel(f_max), count + 2)
    edges = np.where(mels < 15, mels / 0.015, 1000 * np.exp(step * (mels - 15)))
    lower, centre, upper = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    frequencies = np.linspace(0, SAMPLE_RATE / 2, n_fft // 2 + 1)
    rising, falling = (frequencies - lower) / (centre - lower), (upper - frequencies) / (upper - centre)
    bands = np.maximum(0, np.minimum(rising, falling)) * (2 / (upper - lower))
    return torch.from_numpy(bands.astype(np.float32))


class PowerMel(nn.Module):
    """Power in mel bands: periodic Hann windows of ``window`` samples, centred on every ``hop``-th; zeros at both ends.

    Computed in float32, under autocast too: powers span more than the narrow formats hold.

    Args:
        count: bands.
        window: samples in a window, at 16 kHz.
        n_fft: samples of the transform, at least ``window``: the rest are zeros on either side of it.
        hop: samples from one frame to the next.
        f_min: lower edge of the first band in Hz.
        f_max: upper edge of the last band in Hz.
    """

    def __init__(self, count: int, window: int, n_fft: int, hop: int, f_min: float, f_max: float) -> None:
        super().__init__()
        self.n_fft, self.hop = n_fft, hop
        self.register_buffer("bands", mel_bands(count, n_fft, f_min, f_max), persistent=False)
        self.register_buffer("window", torch.hann_window(window), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """Waveforms (B, 1, L) as powers (B, count, 1 + L // hop)."""
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
    """10 log10 of powers (B, ...) over the largest of each of the B: from ``floor`` to 0.

    Powers below ``smallest`` count as that, so silence is 0 everywhere. This is librosa's power_to_db with ``ref=max``.
    """
    level = power.clamp(min=smallest)
    peak = level.amax(dim=tuple(range(1, level.ndim)), keepdim=True)
    return (10 * (level.log10() - peak.log10())).clamp(min=floor)


class ProtocolMel(nn.Module):
    """The input of the SC09 protocol's classifier: 32 mel bands in 32 frames, in dB below the loudest of the clip.

    librosa's melspectrogram with its defaults (windows of 2048 samples, hop 512, power, up to 8 kHz) and power_to_db
    (``ref=max``, 80 dB deep), as for the figures of SaShiMi (arXiv 2202.09729).
    """

    def __init__(self) -> None:
        super().__init__()
        self.power = PowerMel(32, window=2048, n_fft=2048, hop=512, f_min=0.0, f_max=SAMPLE_RATE / 2)

    def forward(self, waveform: Tensor) -> Tensor:
        """Waveforms (B, 1, 16000) at 16 kHz as levels (B, 1, 32, 32), from -80 to 0 dB."""
        return decibels_below_peak(self.power(waveform), smallest=1e-10, floor=-80.0)[:, None]


class RelativeMel(nn.Module):
    """The small classifier's input: fine in time, blind to level, and to all that a telephone leaves out.

    32 bands of windows of 25 ms, every 10 ms, as :class:`.SpeechEmbedding` wants them, with the loudest of the clip
    where the loudest of speech lies. They end at 3.8 kHz: the recordings that teach most digits have nothing above
    4 kHz, so anything up there would tell the data set apart instead of the word, and clips of 8 kHz systems would not
    be heard as those of 16 kHz.
    """

    peak = 11.0
    floor = 5.0  # 60 dB below the loudest

    def __init__(self) -> None:
        super().__init__()
        self.power = PowerMel(32, window=400, n_fft=512, hop=160, f_min=60.0, f_max=3800.0)

    def forward(self, waveform: Tensor) -> Tensor:
        """Waveforms (B, 1, L) at 16 kHz as levels (B, 1, 32, 1 + L // 160) from ``floor`` to ``peak``, 1 for 10 dB."""
        depth = 10 * (self.floor - self.peak)
        return self.peak + decibels_below_peak(self.power(waveform), smallest=1e-12, floor=depth)[:, None] / 10
