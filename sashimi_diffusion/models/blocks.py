"""The layers of a SaShiMi backbone: norms, residual S4 and feed-forward layers, pools."""

from typing import NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sashimi_kernels as kernels
from sashimi_diffusion.models.layers import pointwise
from sashimi_diffusion.ssm import S4Layer
from sashimi_diffusion.ssm.legacy_s4 import LegacyS4
from sashimi_diffusion.ssm.pointwise import gelu

S4: TypeAlias = S4Layer | LegacyS4


class Conditioning(NamedTuple):
    """Conditioning that every block of a denoiser receives; both fields are None in an autoregressive model.

    Args:
        embedding: diffusion step (and class) embedding, (B, embedding_dim).
        mel: log-mel spectrogram, (B, mel_channels, frames).
    """

    embedding: Tensor | None = None
    mel: Tensor | None = None


def add(x: Tensor, y: Tensor) -> Tensor:
    """Return x + y; y must not be used afterwards.

    The result is written over y if the dtypes are equal. Under autocast they may differ.
    """
    return y.add_(x) if y.dtype == x.dtype else x + y


class ScalarNorm(nn.Module):
    """Layer norm over the channels of (B, H, L) with a single gain and shift: gain / std · (x - mean + shift)."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the normalized ``x``, (B, H, L), plus ``bias``, (B, H), at every position."""
        return kernels.scalar_norm(x, self.gain, self.shift, bias, scalar_norm_epsilon(x.dtype))


def scalar_norm_epsilon(dtype: torch.dtype) -> float:
    """Return the number that :class:`ScalarNorm` adds to the variance of inputs of ``dtype``.

    The official norm adds nothing, which gives NaN where all channels are equal. 1e-20 changes the result by 5e-9 of
    its value if the standard deviation of the channels is 1e-6. In float16, epsilon to the power of -1/2 must be less
    than the largest number, 65504.
    """
    return 1e-8 if dtype == torch.float16 else 1e-20


class ChannelLayerNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, H, L) with a gain and a shift per channel."""

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the normalized ``x``, (B, H, L), plus ``bias``, (B, H), at every position."""
        return kernels.layer_norm(x, self.weight, self.bias, bias, self.eps)


def channel_norm(name: str, d_model: int) -> nn.Module:
    """Return the norm called ``name`` for (B, d_model, L): "scalar" (as in the official code) or "layer".

    Raises:
        ValueError: the name is unknown.
    """
    if name == "scalar":
        return ScalarNorm()
    if name == "layer":
        return ChannelLayerNorm(d_model)
    raise ValueError(f"unknown norm {name!r}: expected 'scalar' or 'layer'")


class ResidualS4(nn.Module):
    """SaShiMi's residual S4 layer with DiffWave's conditioning (arXiv 2202.09729, section 5.2).

    x + mel + S4(norm(x) + e), where e is a linear map of the step embedding, and mel the upsampled mel spectrogram.

    Args:
        s4: S4 layer, which adds the argument ``residual`` of its ``forward`` to its output.
        norm: norm over the channels.
        d_model: number of features H.
        embedding_dim: width of the step embedding, or None without one.
        mel: layer that upsamples a mel spectrogram to (B, H, L), or None without one.
    """

    def __init__(
        self,
        s4: S4,
        norm: nn.Module,
        d_model: int,
        embedding_dim: int | None = None,
        mel: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.norm, self.s4, self.mel = norm, s4, mel
        self.step_projection = None if embedding_dim is None else nn.Linear(embedding_dim, d_model)

    def forward(self, x: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the output (B, H, L) for ``x``, (B, H, L)."""
        bias = None if self.step_projection is None else self.step_projection(conditioning.embedding)  # (B, H)
        residual = x if self.mel is None else add(x, self.mel(conditioning.mel, x.shape[-1]))
        return self.s4(self.norm(x, bias), residual=residual)

    def advance(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Process one sample by a recurrence step, or several by convolutions; the layer is causal and unconditional.

        Args:
            x: features, (B, H, L).
            state: state of the S4 layer before ``x``, complex (B, H, N); None is the zero state.

        Returns:
            output (B, H, L) and the state after ``x``.
        """
        s4, u = cast(S4Layer, self.s4), self.norm(x)
        if x.shape[-1] > 1 or state is None:
            y, state = s4.prefill(u, state)
        else:
            y, state = s4.step(u.squeeze(-1), state)
            y = y.unsqueeze(-1)
        return add(x, y), state


class ResidualFeedForward(nn.Module):
    """x + W₂ GELU(W₁ norm(x)) at every position.

    Args:
        norm: norm over the channels.
        d_model: number of features H.
        expand: factor between H and the number of features between the two linear maps.
        weight_norm: weight normalization of both linear maps.
    """

    def __init__(self, norm: nn.Module, d_model: int, expand: int, weight_norm: bool) -> None:
        super().__init__()
        self.norm = norm
        self.input_linear = pointwise(d_model, expand * d_model, weight_norm)
        self.output_linear = pointwise(expand * d_model, d_model, weight_norm)

    def forward(self, x: Tensor, conditioning: Conditioning | None) -> Tensor:
        """Return the output (B, H, L) for ``x``, (B, H, L); ``conditioning`` is not used."""
        return add(x, self.output_linear(gelu(self.input_linear(self.norm(x)))))


class Block(nn.ModuleList):
    """A sequence of residual layers; skip connections lead around whole blocks."""

    def forward(self, x: Tensor, conditioning: Conditioning) -> Tensor:
        """Return the output (B, H, L) for ``x``, (B, H, L)."""
        for layer in self:
            x = layer(x, conditioning)
        return x


class DownPool(nn.Module):
    """Map each frame of ``pool`` neighboring samples to one: (B, H, L) to (B, out_channels, L / pool).

    A linear map mixes the channels of all samples of a frame.
    """

    def __init__(self, in_channels: int, out_channels: int, pool: int, weight_norm: bool) -> None:
        super().__init__()
        self.pool = pool
        self.linear = pointwise(in_channels * pool, out_channels, weight_norm)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.transpose(1, 2).unflatten(1, (-1, self.pool)).flatten(2)  # (B, L / pool, pool · H)
        # Permute the weights, not the samples, because the weights are smaller.
        weight = self.linear.weight.squeeze(-1).unflatten(1, (-1, self.pool)).transpose(1, 2).flatten(1)
        return F.linear(frames, weight, self.linear.bias).transpose(1, 2)


class UpPool(nn.Module):
    """Map each sample to a frame of ``pool`` neighboring samples: (B, H, L) to (B, out_channels, L · pool).

    A causal up-pool delays its output by one frame, because its input is known only after the last sample of a frame.
    """

    def __init__(self, in_channels: int, out_channels: int, pool: int, weight_norm: bool, causal: bool) -> None:
        super().__init__()
        self.pool, self.causal = pool, causal
        self.linear = pointwise(in_channels, out_channels * pool, weight_norm)

    def forward(self, x: Tensor) -> Tensor:
        y = self.unfold_channels(x)
        return F.pad(y[..., : -self.pool], (self.pool, 0)) if self.causal else y

    def unfold_channels(self, x: Tensor) -> Tensor:
        """Map (B, H, L) to (B, out_channels, L · pool) without the delay."""
        weight, bias = (
            parameter.unflatten(0, (-1, self.pool)).transpose(0, 1).flatten(0, 1)
            for parameter in (self.linear.weight.squeeze(-1), cast(Tensor, self.linear.bias))
        )
        frames = F.linear(x.transpose(1, 2), weight, bias)  # (B, L, pool · out_channels)
        return frames.unflatten(-1, (self.pool, -1)).flatten(1, 2).transpose(1, 2)
