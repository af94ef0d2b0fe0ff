"""DiffWave's own backbone, which SaShiMi replaces: gated dilated convolutions (arXiv 2009.09761, section 3)."""

import math
from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from sashimi_diffusion.models.conditioning import LabelEmbedding, MelUpsampler, StepEmbedding, validate_conditioning
from sashimi_diffusion.models.layers import conv1d, output_head, pointwise
from sashimi_diffusion.models.output import DenoiserOutput


class WaveNetBlock(nn.Module):
    """One residual layer: a dilated convolution of the step-conditioned input (plus the mel), a gate, two outputs.

    Args:
        residual_channels: width of the residual path R.
        skip_channels: width of the skip output S.
        dilation: of the convolution with three taps.
        embedding_dim: width of the step embedding.
        step_on_residual: add the step embedding to the residual path too, not only to the convolution's input.
        mel: layer that brings a mel spectrogram to (B, 2R, L), or None without one.
    """

    def __init__(
        self,
        residual_channels: int,
        skip_channels: int,
        dilation: int,
        embedding_dim: int,
        step_on_residual: bool,
        mel: MelUpsampler | None,
    ) -> None:
        super().__init__()
        self.step_on_residual = step_on_residual
        self.step_projection = nn.Linear(embedding_dim, residual_channels)
        self.dilated = conv1d(residual_channels, 2 * residual_channels, 3, dilation)
        self.mel = mel
        self.residual_output = pointwise(residual_channels, residual_channels)
        self.skip_output = pointwise(residual_channels, skip_channels)

    def forward(self, x: Tensor, embedding: Tensor, mel: Tensor | None) -> tuple[Tensor, Tensor]:
        """``x`` (B, R, L) to the next ``x`` and the skip output (B, S, L)."""
        conditioned = x + self.step_projection(embedding).unsqueeze(-1)
        y = self.dilated(conditioned)
        if self.mel is not None:
            y = y + self.mel(mel, x.shape[-1])
        content, gate = y.chunk(2, dim=1)
        y = torch.tanh(content) * torch.sigmoid(gate)
        residual = conditioned if self.step_on_residual else x
        return (residual + self.residual_output(y)) * math.sqrt(0.5), self.skip_output(y)


class WaveNetDenoiser(ModelMixin, ConfigMixin):
    """DiffWave with its WaveNet backbone: bidirectional dilated convolutions, interface as :class:`SashimiDenoiser`.

    Args:
        in_channels, out_channels: audio channels in and out.
        sample_rate: rate of the waveforms in Hz.
        sample_size: number of samples the model was trained on, and the default length to generate.
        waveform_std: recordings are divided by it before the diffusion, generated waveforms multiplied by it.
        residual_channels, skip_channels: widths of the residual path and of the skip outputs.
        n_layers: number of residual layers.
        dilation_cycle: layer n is dilated by 2 to the power of n modulo this.
        step_on_residual: add the step embedding to the residual path too: a slip of the official code that the
            published weights were trained with; without it they give noise.
        embedding_sines, embedding_hidden, embedding_dim: sizes of the diffusion step embedding.
        num_classes: number of classes, or None for an unconditional model. Index ``num_classes`` is the null class.
        class_names: names of the classes, in order.
        num_speakers: number of speakers, or None for a model that is not told who speaks. Index ``num_speakers`` is
            the null speaker.
        speaker_names: names of the speakers, in order.
        mel_channels: mel bands of a vocoder's spectrogram, or None without one.
        mel_upsample: factors whose product is the hop of the spectrogram in samples.
    """

    config_name = "config.json"
    length_multiple = 1
    """Waveforms of any length will do."""

    @register_to_config
    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        sample_rate: int = 16000,
        sample_size: int = 16000,
        waveform_std: float = 1.0,
        residual_channels: int = 256,
        skip_channels: int = 256,
        n_layers: int = 36,
        dilation_cycle: int = 12,
        step_on_residual: bool = False,
        embedding_sines: int = 128,
        embedding_hidden: int = 512,
        embedding_dim: int = 512,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        num_speakers: int | None = None,
        speaker_names: Sequence[str] | None = None,
        mel_channels: int | None = None,
        mel_upsample: Sequence[int] = (16, 16),
    ) -> None:
        super().__init__()
        self.input = nn.Sequential(pointwise(in_channels, residual_channels), nn.ReLU())
        self.step_embedding = StepEmbedding(embedding_sines, embedding_hidden, embedding_dim)
        self.class_embedding = None if num_classes is None else LabelEmbedding(num_classes, embedding_dim)
        self.speaker_embedding = None if num_speakers is None else LabelEmbedding(num_speakers, embedding_dim)
        self.blocks = nn.ModuleList(
            WaveNetBlock(
                residual_channels,
                skip_channels,
                2 ** (layer % dilation_cycle),
                embedding_dim,
                step_on_residual,
                None if mel_channels is None else MelUpsampler(mel_upsample, mel_channels, 2 * residual_channels),
            )
            for layer in range(n_layers)
        )
        # It leads nowhere: there for the layout, but distributed training would wait for its gradient for ever.
        self.blocks[-1].residual_output.requires_grad_(False)
        self.output = output_head(skip_channels, out_channels)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        mel: Tensor | None = None,
        speaker_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> DenoiserOutput | tuple[Tensor]:
        """Predict the noise (or the velocity) in ``sample``.

        Args:
            sample: noisy waveforms, (B, in_channels, L).
            timestep: diffusion steps, a number or (B,); may be fractional.
            class_labels: class indices, (B,); None is the null class for all.
            mel: log-mel spectrograms, (B, mel_channels, frames) with frames · hop >= L.
            speaker_labels: speaker indices, (B,); None is the null speaker for all.
            return_dict: return a :class:`DenoiserOutput` instead of a tuple.

        Raises:
            UserError: conditioning that the model does not have or lacks, labels out of range.
        """
        validate_conditioning(self.config, sample, class_labels, mel, speaker_labels)
        embedding = self.step_embedding(timestep, sample.shape[0])
        if self.class_embedding is not None:
            embedding = embedding + self.class_embedding(class_labels, sample.shape[0])
        if self.speaker_embedding is not None:
            embedding = embedding + self.speaker_embedding(speaker_labels, sample.shape[0])
        x, skips = self.input(sample), 0
        for block in self.blocks:
            x, skip = block(x, embedding, mel)
            skips = skips + skip
        x = self.output(skips * math.sqrt(1 / len(self.blocks)))
        return DenoiserOutput(sample=x) if return_dict else (x,)
