"""DiffWave with its WaveNet backbone: gated dilated convolutions (arXiv 2009.09761, section 3)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from sashimi_diffusion.arguments import Range
from sashimi_diffusion.models.base import RANGES
from sashimi_diffusion.models.conditioning import MelUpsampler
from sashimi_diffusion.models.denoiser_base import Denoiser, embedding_parameters, output_head
from sashimi_diffusion.models.layers import WeightNormConv1d, module_list, pointwise


class WaveNetBlock(nn.Module):
    """A residual layer: dilated convolution of the conditioned input, gated activation, residual and skip output.

    Args:
        residual_channels: width of the residual path R.
        skip_channels: width of the skip output S.
        dilation: dilation of the convolution, which has three taps.
        embedding_dim: width of the step embedding.
        step_on_residual: add the step embedding to the residual path too, not only to the convolution's input.
        mel: layer that upsamples a mel spectrogram to (B, 2R, L), or None without one.
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
        self.dilated = WeightNormConv1d(
            residual_channels, 2 * residual_channels, 3, dilation=dilation, padding=dilation
        )
        self.mel = mel
        self.residual_output = pointwise(residual_channels, residual_channels)
        self.skip_output = pointwise(residual_channels, skip_channels)

    def forward(self, x: Tensor, embedding: Tensor, mel: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the next ``x`` (B, R, L) and the skip output (B, S, L)."""
        conditioned = x + self.step_projection(embedding).unsqueeze(-1)
        y = self.dilated(conditioned)
        if self.mel is not None:
            y = y + self.mel(mel, x.shape[-1])
        content, gate = y.chunk(2, dim=1)
        y = torch.tanh(content) * torch.sigmoid(gate)
        residual = conditioned if self.step_on_residual else x
        return (residual + self.residual_output(y)) * math.sqrt(0.5), self.skip_output(y)


class WaveNetDenoiser(Denoiser):
    """DiffWave with its WaveNet backbone of bidirectional dilated convolutions; waveforms may have any length.

    Args:
        in_channels, out_channels: audio channels in and out.
        sample_rate: rate of the waveforms in Hz.
        sample_size: number of samples the model was trained on, and the default length to generate.
        waveform_std: divisor of recordings before the diffusion, and factor of generated waveforms.
        pre_emphasis: coefficient of :func:`.pre_emphasize`, which filters recordings before the diffusion; generated
            waveforms pass through its inverse. 0: no filter.
        objective: the training objective, which decides about the schedulers: "diffusion" (noise or velocity at the
            timesteps of a discrete schedule), "flow" (flow matching) or "edm" (EDM preconditioning).
        residual_channels, skip_channels: widths of the residual path and of the skip outputs.
        n_layers: number of residual layers.
        dilation_cycle: layer n has the dilation ``2 ** (n % dilation_cycle)``.
        step_on_residual: add the step embedding to the residual path too. The published weights need it, because an
            in-place addition in the official code had this effect during their training.
        embedding_sines, embedding_hidden, embedding_dim: sizes of the diffusion step embedding.
        num_classes: number of classes, or None for an unconditional model. Index ``num_classes`` is the null class.
        class_names: names of the classes, in order.
        num_speakers: number of speakers, or None for a model without speaker conditioning. Index ``num_speakers`` is
            the null speaker.
        speaker_names: names of the speakers, in order.
        mel_channels: mel bands of a vocoder's spectrogram, or None without one.
        mel_upsample: factors whose product is the hop of the spectrogram in samples.
        mel_settings: how the spectrograms are computed, a mapping of :class:`.MelSettings`; None: its defaults.
        mel_mean, mel_std: the blocks get (mel - mel_mean) / mel_std. A network learns faster if these values have a
            mean of about 0 and a standard deviation of about 1.
        mel_whitening: whether the diffusion works on waveforms without the spectral envelope in their mel spectrogram,
            see :class:`.MelEnvelope`.

    Raises:
        UserError: a value of another type or out of its range.
    """

    ranges: ClassVar[Mapping[str, Range]] = {**RANGES, "n_layers": Range(1, 512)}

    @register_to_config
    def __init__(
        self,
        in_channels: int = 1,
        out_channels: int = 1,
        sample_rate: int = 16000,
        sample_size: int = 16000,
        waveform_std: float = 1.0,
        pre_emphasis: float = 0.0,
        objective: str = "diffusion",
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
        mel_settings: Mapping[str, Any] | None = None,
        mel_mean: float = 0.0,
        mel_std: float = 1.0,
        mel_whitening: bool = False,
    ) -> None:
        super().__init__(
            in_channels,
            residual_channels,
            (embedding_sines, embedding_hidden, embedding_dim),
            num_classes,
            num_speakers,
        )
        self.gradient_checkpointing = False  # diffusers sets it, together with _gradient_checkpointing_func
        self.blocks = module_list(
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
        # Official checkpoints have this layer, but no output depends on it. Without requires_grad_(False), distributed
        # training would wait for its gradient.
        self.blocks[-1].residual_output.requires_grad_(False)
        self.output = output_head(skip_channels, out_channels)

    @staticmethod
    def estimated_parameters(arguments: Mapping[str, Any]) -> int:
        """Return about how many parameters a network with these arguments has, see :class:`WaveformModel`."""
        width, skip = arguments["residual_channels"], arguments["skip_channels"]
        inputs = 7 * width + arguments["embedding_dim"] + 2 * (arguments["mel_channels"] or 0)
        blocks = arguments["n_layers"] * width * (inputs + skip)
        return blocks + embedding_parameters(arguments) + skip**2

    def parts_without_adapters(self) -> list[str]:
        """Return also the name of the layer on which no output depends."""
        return [*super().parts_without_adapters(), f"blocks.{len(self.blocks) - 1}.residual_output"]

    def predict(self, x: Tensor, embedding: Tensor, mel: Tensor | None) -> Tensor:
        """Return the prediction (B, out_channels, L), see :class:`Denoiser`."""
        skips = x.new_zeros(())
        for block in self.blocks:
            x, skip = self._run(block, x, embedding, mel)  # (B, R, L), (B, S, L)
            skips = skips + skip
        return self.output(skips * math.sqrt(1 / len(self.blocks)))

    def _run(self, block: WaveNetBlock, *args: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run a block, under gradient checkpointing if it is enabled."""
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return self._gradient_checkpointing_func(block, *args)
        return block(*args)
