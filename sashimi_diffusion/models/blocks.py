"""The layers of a SaShiMi backbone: norms, residual S4 and feed-forward layers, pooling."""

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
    """Conditioning that every block of a denoiser receives; both None in an autoregressive model.

    Args:
        embedding: diffusion step (and class) embedding, (B, embedding_dim).
        mel: log-mel spectrogram, (B, mel_channels, frames).
    """

    embedding: Tensor | None = None
    mel: Tensor | None = None


def add(x: Tensor, y: Tensor) -> Tensor:
    """Return x + y. Add in place if the dtypes are equal (under autocast they may differ); y must not be used after."""
    return y.add_(x) if y.dtype == x.dtype else x + y


class ScalarNorm(nn.Module):
    """Layer norm over the channels of (B, H, L) with a single gain and shift: gain / std · (x - mean + shift)."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Normalize ``x``, and add ``bias`` (B, H) to every position."""
        return kernels.scalar_norm(x, self.gain, self.shift, bias, scalar_norm_epsilon(x.dtype))


def scalar_norm_epsilon(dtype: torch.dtype) -> float:
    """Return the number that :class:`ScalarNorm` adds to the variance of inputs of ``dtype``.

    The official norm adds none, which gives NaN where all channels are equal. 1e-20 changes a feature with a standard
    deviation of 1e-6 by 5e-9 of its value. Smaller numbers are not possible: the gradient contains epsilon to the power
    of -3/2, which must be finite in float32. In float16, epsilon to the power of -1/2 must be below 65504.
    """
    return 1e-8 if dtype == torch.float16 else 1e-20


class ChannelLayerNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, H, L) with a gain and a shift per channel."""

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Normalize ``x``, and add ``bias`` (B, H) to every position."""
        return kernels.layer_norm(x, self.weight, self.bias, bias, self.eps)


def channel_norm(name: str, d_model: int) -> nn.Module:
    """Return the norm called ``name``: "scalar" (as in the official code) or "layer".

    Raises:
        ValueError: any other name.
    """
    if name == "scalar":
        return ScalarNorm()
    if name == "layer":
        return ChannelLayerNorm(d_model)
    raise ValueError(f"unknown norm {name!r}: expected 'scalar' or 'layer'")


class ResidualS4(nn.Module):
    """x + S4(norm(x) + step) + mel: SaShiMi's residual S4 layer with DiffWave's conditioning (2202.09729, section 5.2).

    Args:
        s4: layer from (B, H, L) to (B, H, L) that adds its ``residual``.
        norm: norm over the channels.
        d_model: number of features H.
        embedding_dim: width of the step embedding, or None without one.
        mel: layer that brings a mel spectrogram to (B, H, L), or None without one.
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
        bias = None if self.step_projection is None else self.step_projection(conditioning.embedding)  # (B, H)
        residual = x if self.mel is None else add(x, self.mel(conditioning.mel, x.shape[-1]))
        return self.s4(self.norm(x, bias), residual=residual)

    def advance(self, x: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """Process samples from a state, without conditioning: one sample by a recurrence step, more by convolutions.

        Args:
            x: features, (B, H, L).
            state: state of the S4 layer, which is causal, complex (B, H, N); None is the state at rest.

        Returns:
            output (B, H, L) and the state after it.
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
        expand: growth of the features inside.
        weight_norm: weight normalization of both linear maps.
    """

    def __init__(self, norm: nn.Module, d_model: int, expand: int, weight_norm: bool) -> None:
        super().__init__()
        self.norm = norm
        self.input_linear = pointwise(d_model, expand * d_model, weight_norm)
        self.output_linear = pointwise(expand * d_model, d_model, weight_norm)

    def forward(self, x: Tensor, conditioning: Conditioning | None) -> Tensor:
        return add(x, self.output_linear(gelu(self.input_linear(self.norm(x)))))


class Block(nn.ModuleList):
    """A sequence of residual layers between two skip connections."""

    def forward(self, x: Tensor, conditioning: Conditioning) -> Tensor:
        for layer in self:
            x = layer(x, conditioning)
        return x


class DownPool(nn.Module):
    """Fold ``pool`` neighboring samples into the channels and mix: (B, H, L) to (B, out_channels, L / pool)."""

    def __init__(self, in_channels: int, out_channels: int, pool: int, weight_norm: bool) -> None:
        super().__init__()
        self.pool = pool
        self.linear = pointwise(in_channels * pool, out_channels, weight_norm)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.transpose(1, 2).unflatten(1, (-1, self.pool)).flatten(2)  # (B, L / pool, pool · H)
        # The weights are permuted to the order of the samples in memory, because they are smaller.
        weight = self.linear.weight.squeeze(-1).unflatten(1, (-1, self.pool)).transpose(1, 2).flatten(1)
        return F.linear(frames, weight, self.linear.bias).transpose(1, 2)


class UpPool(nn.Module):
    """Mix and unfold the channels into ``pool`` neighboring samples: (B, H, L) to (B, out_channels, L · pool).

    A causal up-pool delays its output by one frame of ``pool`` samples, because a frame depends on all of its samples.
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
