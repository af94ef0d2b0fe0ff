"""The spectral envelope in a mel spectrogram, and waveforms without it.

A mel spectrogram contains the level of each band in each frame. A vocoder with ``mel_whitening`` divides the spectra of
a recording by these levels before the diffusion, and multiplies those of the generated waveform by them, so that the
network learns only what the levels do not contain. SpecGrad (Koizumi et al. 2022, arXiv 2203.16749) gives this envelope
to the noise of the diffusion instead, which is the same up to the error of the inverse.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sashimi_diffusion.data.mel import BLOCK_FRAMES, LogMel
from sashimi_diffusion.errors import UserError


class MelEnvelope(nn.Module):
    """Filter that removes the envelope of mel spectrograms from waveforms, or applies it.

    The frames begin where those of the mel spectrogram do. The envelope of a frame is the level of the bands,
    interpolated in the logarithm; below the first and above the last band it is constant. White noise with a standard
    deviation of 1 has an envelope of about 1.

    :meth:`color` is about the inverse of :meth:`whiten`: the spectra of neighboring frames overlap, so the inverse is
    the closer, the less the envelope changes from frame to frame. Both repeat the last frame of a spectrogram that ends
    earlier than the waveforms, and ignore frames after the end of the waveforms.

    Args:
        mel: transform that computes the spectrograms.

    Raises:
        UserError: a window is shorter than two hops, so that samples between the frames would be lost.
    """

    window: Tensor
    interpolation: Tensor
    offsets: Tensor

    def __init__(self, mel: LogMel) -> None:
        super().__init__()
        if len(mel.window) < 2 * mel.hop:
            raise UserError(
                f"mel_whitening needs mel windows of at least two hops ({2 * mel.hop} samples), got {len(mel.window)}: "
                "set a larger n_fft and win_length"
            )
        self.settings, self.n_fft, self.hop, self.padding = mel.settings, mel.n_fft, mel.hop, mel.padding
        missing = mel.n_fft - len(mel.window)
        window = F.pad(mel.window, (missing // 2, missing - missing // 2))
        self.register_buffer("window", window, persistent=False)  # (n_fft,)
        # The log levels of the bands of a spectrum of ones, without the window.
        offsets = mel.bands.sum(dim=1, keepdim=True).clamp(min=1e-12).log()
        self.register_buffer("offsets", offsets, persistent=False)  # (n_mels, 1)
        self.log_gain = math.log(float(window.square().sum())) / 2  # of white noise
        self.register_buffer("interpolation", _interpolation(mel.bands), persistent=False)  # (n_fft // 2 + 1, n_mels)

    def whiten(self, waveform: Tensor, mel: Tensor) -> Tensor:
        """Return waveforms (B, 1, L) without the envelope of their log-mel spectrograms.

        Args:
            waveform: (B, 1, L).
            mel: (B, n_mels, frames), in the unit of the settings of the transform.
        """
        return self._filter(waveform, mel, -1.0)

    def color(self, waveform: Tensor, mel: Tensor) -> Tensor:
        """Return waveforms (B, 1, L) with the envelope of log-mel spectrograms; arguments as in :meth:`whiten`."""
        return self._filter(waveform, mel, 1.0)

    def _filter(self, waveform: Tensor, mel: Tensor, exponent: float) -> Tensor:
        """Return the waveforms after multiplying their spectra by the envelope to the power ``exponent``."""
        x, n_fft, hop = waveform.squeeze(1), self.n_fft, self.hop  # (B, L)
        frames = 1 + x.shape[-1] // hop
        logs = F.pad(mel.float(), (0, max(frames - mel.shape[-1], 0)), mode="replicate")[..., :frames]
        left, length = self.padding[0], (frames - 1) * hop + n_fft
        right = max(length - left - x.shape[-1], 0)
        # Zeros would be a jump, and whitening amplifies the high frequencies of a jump. A waveform must be longer than
        # its reflection.
        mode = "reflect" if x.shape[-1] > max(left, right) else "constant"
        padded = F.pad(x.float().unsqueeze(1), (left, right), mode=mode).squeeze(1)
        sums, weights = torch.zeros_like(padded), torch.zeros_like(padded[:1])
        for first in range(0, frames, BLOCK_FRAMES):
            block = logs[..., first : first + BLOCK_FRAMES]
            part = slice(first * hop, (first + block.shape[-1] - 1) * hop + n_fft)
            segments = padded[:, part].unfold(-1, n_fft, hop) * self.window  # (B, frames, n_fft)
            spectra = torch.fft.rfft(segments) * (exponent * self._log_envelope(block)).exp().mT
            sums[:, part] += _overlap_add(torch.fft.irfft(spectra, n_fft) * self.window, hop)
            squares = self.window.square().expand(1, block.shape[-1], n_fft)
            weights[:, part] += _overlap_add(squares, hop)
        result = (sums / weights.clamp(min=1e-6))[:, left : left + x.shape[-1]]
        return result.unsqueeze(1).to(waveform.dtype)

    def _log_envelope(self, mel: Tensor) -> Tensor:
        """Return the natural logarithm of the envelope, (B, n_fft // 2 + 1, frames)."""
        levels = (mel / self.settings.unit - self.offsets) / self.settings.power
        return self.interpolation @ levels - self.log_gain


def _interpolation(bands: Tensor) -> Tensor:
    """Return the matrix from band levels to bins, (n_fft // 2 + 1, n_mels).

    The level of a bin is the mean of its bands, weighted as in the spectrogram. A bin outside of all bands has the
    level of the nearest bin inside.
    """
    weights = bands.T  # (bins, bands)
    covered = torch.nonzero(weights.sum(dim=1) > 0).squeeze(1)
    nearest = (torch.arange(len(weights))[:, None] - covered).abs().argmin(dim=1)
    weights = weights[covered[nearest]]
    return weights / weights.sum(dim=1, keepdim=True)


def _overlap_add(frames: Tensor, hop: int) -> Tensor:
    """Return the sum (B, L) of frames (B, count, n) that begin ``hop`` samples after each other."""
    length = (frames.shape[1] - 1) * hop + frames.shape[2]
    return F.fold(frames.mT, (1, length), (1, frames.shape[2]), stride=(1, hop))[:, 0, 0]
