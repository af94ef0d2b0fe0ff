"""Conditioning of a denoiser: the diffusion step, a class, a speaker and a mel spectrogram."""

import math
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models.layers import WeightNormConvTranspose2d, module_list, pointwise


class StepEmbedding(nn.Module):
    """DiffWave's embedding of the diffusion step (arXiv 2009.09761, section 3.1; frequencies as in the official code).

    Args:
        sines: number of sinusoidal features, even: sin and cos of timestep · 10000^(-k / (sines/2 - 1)).
        hidden: width of the hidden layer.
        dim: width of the embedding.

    Raises:
        UserError: ``sines`` is odd or less than 4.
    """

    def __init__(self, sines: int, hidden: int, dim: int) -> None:
        super().__init__()
        if sines < 4 or sines % 2:
            raise UserError(f"embedding_sines is {sines}: expected an even number of at least 4")
        self.sines = sines
        self.hidden = nn.Linear(sines, hidden)
        self.output = nn.Linear(hidden, dim)

    def forward(self, timestep: Tensor | float, batch_size: int) -> Tensor:
        """Return the embedding (B, dim) of ``timestep``, a number or (B,), which may be fractional."""
        weight = self.hidden.weight
        timestep = torch.as_tensor(timestep, device=weight.device, dtype=torch.float32).reshape(-1).expand(batch_size)
        half = self.sines // 2
        exponents = torch.arange(half, device=weight.device, dtype=torch.float32) * (-math.log(10000) / (half - 1))
        angles = timestep.unsqueeze(-1) * torch.exp(exponents)  # (B, sines / 2)
        table = torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1).to(weight.dtype)
        return F.silu(self.output(F.silu(self.hidden(table))))


class LabelEmbedding(nn.Embedding):
    """Embedding of labels (classes or speakers) and of the null label. All embeddings are initialized to zero.

    Denoisers add it to the step embedding.

    Args:
        count: number of labels; index ``count`` is the null label.
        dim: width of the embedding.
    """

    def __init__(self, count: int, dim: int) -> None:
        super().__init__(count + 1, dim)
        self.null_label = count
        nn.init.zeros_(self.weight)

    def forward(self, labels: Tensor | None, batch_size: int) -> Tensor:  # type: ignore[override]  # takes None, too
        """Return the embedding (B, dim) of ``labels``, (B,), int64; None is the null label for all."""
        if labels is None:
            labels = torch.full((batch_size,), self.null_label, device=self.weight.device)
        return super().forward(labels.to(self.weight.device))


class GrownLabelEmbedding(nn.Module):
    """A :class:`LabelEmbedding` whose old labels are frozen and whose new ones are trained.

    Args:
        embedding: the embedding, with the new labels last before the null label.
        added: number of new labels.
    """

    def __init__(self, embedding: LabelEmbedding, added: int) -> None:
        super().__init__()
        self.null_label = embedding.null_label
        table = embedding.weight.detach()
        self.known = nn.Parameter(table[: -added - 1].clone(), requires_grad=False)
        self.added = nn.Parameter(table[-added - 1 : -1].clone())
        self.null = nn.Parameter(table[-1:].clone(), requires_grad=False)

    @property
    def weight(self) -> Tensor:
        """The whole table, (labels + 1, dim)."""
        return torch.cat([self.known, self.added, self.null])

    def forward(self, labels: Tensor | None, batch_size: int) -> Tensor:
        """Return the embedding (B, dim) of ``labels``, see :class:`LabelEmbedding`."""
        if labels is None:
            labels = torch.full((batch_size,), self.null_label, device=self.known.device)
        return F.embedding(labels.to(self.known.device), self.weight)

    def plain(self) -> LabelEmbedding:
        """Return this embedding as one table."""
        embedding = LabelEmbedding(self.null_label, self.known.shape[1]).to(self.known)
        embedding.weight.data.copy_(self.weight)
        return embedding


class MelUpsampler(nn.Module):
    """Upsampler of a log-mel spectrogram to the rate and width of a stage (DiffWave, arXiv 2009.09761, section 5.1).

    Args:
        mel_upsample: factors of the transposed convolutions; their product is the hop of the spectrogram in samples.
        mel_channels: number of mel bands.
        out_channels: width of the stage.
        stride: samples of the waveform per position of the stage; the upsampled mel is averaged over them.
    """

    def __init__(self, mel_upsample: Sequence[int], mel_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        self.upsample = module_list(
            WeightNormConvTranspose2d(1, 1, (3, 2 * factor), stride=(1, factor), padding=(1, factor // 2))
            for factor in mel_upsample
        )
        self.projection = pointwise(mel_channels, out_channels)

    def forward(self, mel: Tensor, length: int) -> Tensor:
        """Upsample (B, mel_channels, frames) to (B, out_channels, length); the end of a longer mel is cut off."""
        x = mel.to(next(self.parameters()).dtype).unsqueeze(1)  # (B, 1, mel_channels, frames)
        for layer in self.upsample:
            x = F.leaky_relu(_upsample(layer, x), 0.4)
        x = x.squeeze(1)[..., : length * self.stride]  # (B, mel_channels, length · stride)
        if self.stride > 1:
            x = F.avg_pool1d(x, self.stride)
        return self.projection(x)


def _upsample(layer: nn.ConvTranspose2d, x: Tensor) -> Tensor:
    """Return ``layer(x)``, (B, 1, bands, frames · factor), for a layer of :class:`MelUpsampler`.

    An odd factor gives one sample more.

    With a kernel of (3, 2 · factor) and a stride of (1, factor), each output is a weighted sum of six inputs, three
    bands of two frames. On a CPU, a product of matrices computes these sums faster than a transposed convolution.
    """
    if x.device.type != "cpu":
        return layer(x)
    factor = layer.stride[1]
    bands, frames = x.shape[2:]
    padded = F.pad(x.squeeze(1), (1, 1, 1, 1))
    # A transposed convolution applies the last weight to the first input.
    inputs = [padded[:, i : i + bands, j : j + frames + 1] for i in (2, 1, 0) for j in (1, 0)]
    weight, bias = layer.weight.reshape(6, factor).T, cast(Tensor, layer.bias).expand(factor)
    sums = F.linear(torch.stack(inputs, dim=-1), weight, bias)  # (B, bands, frames + 1, factor)
    return sums.flatten(2)[:, None, :, factor // 2 : (frames + 1) * factor - factor // 2]


def validate_conditioning(
    config: Any,
    sample: Tensor,
    class_labels: Tensor | None,
    mel: Tensor | None,
    speaker_labels: Tensor | None = None,
) -> None:
    """Check the arguments of a denoiser's ``forward`` against its ``config``.

    Args:
        config: config of the denoiser.
        sample: noisy waveforms, (B, C, L).
        class_labels, speaker_labels: int64 (B,), or None.
        mel: log-mel spectrograms, (B, mel_channels, frames), or None.

    Label ranges are checked only for labels on the CPU and outside of ``torch.compile``, because reading the values
    would wait for the device or break the graph. The pipelines always check them.

    Raises:
        UserError: a sample of a wrong shape, labels or a mel that the model does not support, a missing or too short
            mel, labels out of range.
    """
    if sample.ndim != 3 or sample.shape[1] != config.in_channels:
        raise UserError(
            f"expected waveforms of shape (batch, {config.in_channels}, length), got a tensor of shape "
            f"{tuple(sample.shape)}"
        )
    if class_labels is not None:
        if config.num_classes is None:
            raise UserError("class labels were given to a model without classes: leave them out")
        _validate_labels("class", class_labels, config.num_classes, sample.shape[0])
    if speaker_labels is not None:
        if config.num_speakers is None:
            raise UserError("speaker labels were given to a model without speaker conditioning: leave them out")
        _validate_labels("speaker", speaker_labels, config.num_speakers, sample.shape[0])
    if (mel is None) != (config.mel_channels is None):
        raise UserError(
            "a mel spectrogram was given to a model without mel conditioning: leave it out"
            if config.mel_channels is None
            else f"this model is a vocoder: it needs mel, a spectrogram of shape (batch, {config.mel_channels}, frames)"
        )
    if mel is not None:
        _validate_mel(config, sample, mel)


def _validate_labels(kind: str, labels: Tensor, count: int, batch_size: int) -> None:
    if labels.shape != (batch_size,):
        raise UserError(f"expected one {kind} label per example ({batch_size}), got {tuple(labels.shape)}")
    if torch.compiler.is_compiling() or labels.device.type != "cpu" or not labels.numel():
        return
    if not 0 <= int(labels.min()) <= int(labels.max()) <= count:
        raise UserError(
            f"{kind} labels must be from 0 to {count - 1} ({count} for no {kind}), got {sorted(set(labels.tolist()))}"
        )


def _validate_mel(config: Any, sample: Tensor, mel: Tensor) -> None:
    if mel.ndim != 3 or mel.shape[:2] != (sample.shape[0], config.mel_channels):
        expected = f"({sample.shape[0]}, {config.mel_channels}, frames)"
        raise UserError(f"expected a mel spectrogram of shape {expected}, got {tuple(mel.shape)}")
    hop = math.prod(config.mel_upsample)
    if mel.shape[-1] * hop < sample.shape[-1]:
        raise UserError(
            f"{mel.shape[-1]} mel frames of {hop} samples do not reach the end of {sample.shape[-1]} samples: "
            f"give at least {-(-sample.shape[-1] // hop)} frames"
        )
