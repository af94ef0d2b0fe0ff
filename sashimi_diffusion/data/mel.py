"""The log-mel spectrogram that conditions DiffWave's vocoders."""

import torch
from torch import Tensor, nn

from sashimi_diffusion.data.audio import import_torchaudio
from sashimi_diffusion.errors import UserError

_SMALLEST = 1e-5  # smaller magnitudes are clamped, so that the logarithm of silence is finite


class LogMel(nn.Module):
    """Log-mel spectrogram, the input of the published LJSpeech vocoders (DiffWave, arXiv 2009.09761, section 5.1).

    ``log(max(M |STFT(x)|, 1e-5))``: the natural logarithm of magnitudes, not of power. The window is a periodic Hann
    window of ``n_fft`` samples, the signal is reflected by ``n_fft // 2`` samples at both ends, and M is the matrix of
    Slaney mel bands of unit area.

    Args:
        sample_rate: sample rate of the waveforms in Hz.
        n_fft: window length in samples.
        hop: samples between two frames.
        n_mels: number of mel bands.
        f_min: lower edge of the first band in Hz.
        f_max: upper edge of the last band in Hz.

    Raises:
        UserError: torchaudio, which computes the bands, cannot be imported, or the band limits are impossible.
    """

    bands: Tensor
    window: Tensor

    def __init__(
        self,
        sample_rate: int = 22050,
        n_fft: int = 1024,
        hop: int = 256,
        n_mels: int = 80,
        f_min: float = 0.0,
        f_max: float = 8000.0,
    ) -> None:
        super().__init__()
        if not 0 <= f_min < f_max <= sample_rate / 2:
            raise UserError(
                f"mel bands from {f_min} to {f_max} Hz need 0 <= f_min < f_max <= {sample_rate / 2} Hz, "
                f"half the sample rate of {sample_rate} Hz"
            )
        torchaudio = import_torchaudio("a mel spectrogram", "use a model that is not conditioned on mels")
        bands = torchaudio.functional.melscale_fbanks(
            n_fft // 2 + 1, f_min, f_max, n_mels, sample_rate, norm="slaney", mel_scale="slaney"
        )
        self.n_fft = n_fft
        self.hop = hop
        self.register_buffer("bands", bands.T.contiguous(), persistent=False)  # (n_mels, n_fft // 2 + 1)
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)  # (n_fft,)

    def forward(self, waveform: Tensor) -> Tensor:
        """Compute the log-mel spectrogram.

        Args:
            waveform: shape (B, L) or (B, 1, L), with L greater than ``n_fft // 2``.

        Returns:
            shape (B, n_mels, 1 + L // hop).

        Raises:
            UserError: the waveform has another shape or is too short.
        """
        if waveform.ndim == 3 and waveform.shape[1] == 1:
            waveform = waveform[:, 0]
        if waveform.ndim != 2:
            raise UserError(f"expected waveforms of shape (batch, length) or (batch, 1, length), got {waveform.shape}")
        if waveform.shape[-1] <= self.n_fft // 2:
            raise UserError(f"a mel needs more than {self.n_fft // 2} samples, got {waveform.shape[-1]}")
        spectrum = torch.stft(
            waveform, self.n_fft, hop_length=self.hop, window=self.window, pad_mode="reflect", return_complex=True
        )  # (B, n_fft // 2 + 1, frames)
        return (self.bands @ spectrum.abs()).clamp(min=_SMALLEST).log()
