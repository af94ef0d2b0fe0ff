"""A discriminator of recordings and generated audio, which sees their spectrograms at several resolutions."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import leaky_relu, softplus

_WINDOWS = (0.016, 0.032, 0.064)  # seconds; the longest one separates the harmonics of a voice
_CHANNELS = 24
_SLOPE = 0.2
_SILENCE = 1e-4  # power of a bin, where audio of unit variance has 1 on average


class SpectrogramDiscriminator(nn.Module):
    """Convolutions over complex spectrograms at three resolutions, as the discriminator of EnCodec (arXiv 2210.13438).

    Args:
        channels: channels of the audio C.
        sample_rate: sample rate of the audio in Hz.
        learning_rate_scale: its learning rates, divided by those of the run.
    """

    def __init__(self, channels: int, sample_rate: int, learning_rate_scale: float = 1.0) -> None:
        super().__init__()
        self.learning_rate_scale = learning_rate_scale
        sizes = [2 ** round(math.log2(window * sample_rate)) for window in _WINDOWS]
        self.parts = nn.ModuleList(_Resolution(channels, size) for size in sizes)

    def forward(self, audio: Tensor) -> list[Tensor]:
        """Return the logits that the audio (B, C, L) is a recording, a map over time and frequency per resolution."""
        return [part(audio) for part in self.parts]


class _Resolution(nn.Module):
    """The discriminator at one resolution.

    Args:
        channels: channels of the audio C.
        n_fft: samples of a window.
    """

    window: Tensor

    def __init__(self, channels: int, n_fft: int) -> None:
        super().__init__()
        self.n_fft = n_fft
        self.register_buffer("window", torch.hann_window(n_fft), persistent=False)
        widths = [2 * channels, _CHANNELS, _CHANNELS, _CHANNELS]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(inputs, outputs, (9, 3), stride=(2, 1), padding=(4, 1)) for inputs, outputs in pairwise(widths)
        )
        self.logits = nn.Conv2d(_CHANNELS, 1, (3, 3), padding=(1, 1))

    def forward(self, audio: Tensor) -> Tensor:
        """Return the logits for audio (B, C, L), (B, 1, F, T)."""
        flat = audio.float().flatten(0, 1)  # (B · C, L)
        spectrum = torch.stft(
            flat,
            self.n_fft,
            self.n_fft // 4,
            window=self.window,
            pad_mode="constant",
            normalized=True,
            return_complex=True,
        )
        parts = torch.view_as_real(spectrum)  # (B · C, F, T, 2)
        # The level falls by tens of dB towards high frequencies; the power of 0.3 shows weak bands as well.
        power = parts.square().sum(dim=-1, keepdim=True)
        values = parts * (power + _SILENCE).pow(-0.35)
        hidden = values.unflatten(0, audio.shape[:2]).permute(0, 1, 4, 2, 3).flatten(1, 2)  # (B, 2 C, F, T)
        for convolution in self.convolutions:
            hidden = leaky_relu(convolution(hidden), _SLOPE)
        logits: Tensor = self.logits(hidden)
        return logits


def adversarial_gradient(
    discriminator: SpectrogramDiscriminator, recordings: Tensor, generated: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the loss of the discriminator, (), and the gradient of the generator's loss in the audio, (B, C, L).

    Both losses are the non-saturating ones (arXiv 1406.2661). The gradient is there without gradients being recorded,
    too, as in a validation.

    Args:
        discriminator: the discriminator.
        recordings: recordings (B, C, L).
        generated: generated audio (B, C, L).
    """
    with torch.enable_grad():
        audio = generated.detach().requires_grad_()
        fake = discriminator(audio)
        (gradient,) = torch.autograd.grad(_mean_surprise(fake), audio, retain_graph=True)
    return _mean_surprise([-logits for logits in fake]) + _mean_surprise(discriminator(recordings)), gradient


def _mean_surprise(logits: list[Tensor]) -> Tensor:
    """Return -log p of an event with these logits: the mean over each map, summed over the resolutions, ()."""
    return torch.stack([softplus(-part.float()).mean() for part in logits]).sum()
