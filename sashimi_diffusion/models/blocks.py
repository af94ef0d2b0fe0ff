"""The layers of a SaShiMi backbone: norms, residual S4 and feed-forward layers, pools."""

from typing import NamedTuple, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sashimi_kernels as kernels
from sashimi_diffusion.models.layers import pointwise
from sashimi_diffusion.ssm import S4Layer
from sashimi_diffusion.ssm.convolution import Operator
from sashimi_diffusion.ssm.legacy_s4 import LegacyS4
from sashimi_kernels import layout
from sashimi_kernels.torch_backend.pointwise import add

S4: TypeAlias = S4Layer | LegacyS4


class LayerInputs(NamedTuple):
    """What a residual S4 layer receives in addition to the features.

    Args:
        bias: projected step embedding, (B, H); None in an autoregressive model.
        mel: log-mel spectrogram, (B, mel_channels, frames); None without a vocoder.
        operator: convolution operator of the layer; None if the layer computes it.
    """

    bias: Tensor | None = None
    mel: Tensor | None = None
    operator: Operator | None = None


class NormParameters(NamedTuple):
    """A channel norm as arguments of :func:`sashimi_kernels.feed_forward`."""

    norm: str
    weight: Tensor
    offset: Tensor
    epsilon: float


class ScalarNorm(nn.Module):
    """Layer norm over the channels of (B, H, L) with a single gain and shift: gain / std · (x - mean + shift)."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return the normalized ``x``, (B, H, L), plus ``bias``, (B, H), at every position."""
        return kernels.scalar_norm(x, self.gain, self.shift, bias, scalar_norm_epsilon(x.dtype))

    def parameters_for(self, dtype: torch.dtype) -> NormParameters:
        """Return the parameters for inputs of ``dtype``."""
        return NormParameters("scalar", self.gain, self.shift, scalar_norm_epsilon(dtype))


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

    def parameters_for(self, dtype: torch.dtype) -> NormParameters:
        """Return the parameters for inputs of ``dtype``."""
        return NormParameters("layer", self.weight, self.bias, self.eps)


Norm: TypeAlias = ScalarNorm | ChannelLayerNorm


def channel_norm(name: str, d_model: int) -> Norm:
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
        norm: Norm,
        d_model: int,
        embedding_dim: int | None = None,
        mel: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.norm, self.s4, self.mel = norm, s4, mel
        # The backbone computes the projections of all its layers in one product.
        self.step_projection = None if embedding_dim is None else nn.Linear(embedding_dim, d_model)

    def forward(self, x: Tensor, inputs: LayerInputs) -> Tensor:
        """Return the output (B, H, L) for ``x``, (B, H, L)."""
        norm, weight, offset, epsilon = self.norm.parameters_for(x.dtype)
        u, residual = kernels.norm_and_residual(x, norm, weight, offset, inputs.bias, epsilon)
        residual = residual if self.mel is None else add(residual, self.mel(inputs.mel, x.shape[-1]))
        return self.s4(u, residual=residual, operator=inputs.operator)

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
            return s4.prefill(u, state, residual=x)
        y, state = s4.step(u.squeeze(-1), state, residual=x.squeeze(-1))
        return y.unsqueeze(-1), state


class ResidualFeedForward(nn.Module):
    """x + W₂ GELU(W₁ norm(x)) at every position.

    Args:
        norm: norm over the channels.
        d_model: number of features H.
        expand: factor between H and the number of features between the two linear maps.
        weight_norm: weight normalization of both linear maps.
    """

    def __init__(self, norm: Norm, d_model: int, expand: int, weight_norm: bool) -> None:
        super().__init__()
        self.norm = norm
        self.input_linear = pointwise(d_model, expand * d_model, weight_norm)
        self.output_linear = pointwise(expand * d_model, d_model, weight_norm)

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """Return the output (B, H, L) for ``x``, (B, H, L), plus ``skip``, (B, H, L)."""
        return kernels.feed_forward(
            x,
            *self.norm.parameters_for(x.dtype),
            self.input_linear.weight.squeeze(-1),
            cast(Tensor, self.input_linear.bias),
            self.output_linear.weight.squeeze(-1),
            cast(Tensor, self.output_linear.bias),
            skip,
        )


class Block(nn.ModuleList):
    """A sequence of residual layers; skip connections lead around whole blocks."""

    def forward(self, x: Tensor, inputs: LayerInputs, skip: Tensor | None = None) -> Tensor:
        """Return the output (B, H, L) for ``x``, (B, H, L), plus ``skip``, (B, H, L)."""
        for layer in self:
            if isinstance(layer, ResidualS4):
                x = layer(x, inputs)
            else:
                x, skip = layer(x, skip), None
        return x if skip is None else add(skip, x)


class DownPool(nn.Module):
    """Map each frame of ``pool`` neighboring samples to one: (B, H, L) to (B, out_channels, L / pool).

    A linear map mixes the channels of all samples of a frame.
    """

    def __init__(self, in_channels: int, out_channels: int, pool: int, weight_norm: bool) -> None:
        super().__init__()
        self.pool = pool
        self.linear = pointwise(in_channels * pool, out_channels, weight_norm)

    def forward(self, x: Tensor) -> Tensor:
        if layout.samples_adjacent(x):
            frames = x.unflatten(2, (-1, self.pool)).transpose(2, 3).flatten(1, 2)  # (B, H · pool, L / pool)
            return self.linear(frames)
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
        if layout.samples_adjacent(x):
            return self.linear(x).unflatten(1, (-1, self.pool)).transpose(2, 3).flatten(2)
        weight, bias = (
            parameter.unflatten(0, (-1, self.pool)).transpose(0, 1).flatten(0, 1)
            for parameter in (self.linear.weight.squeeze(-1), cast(Tensor, self.linear.bias))
        )
        frames = F.linear(x.transpose(1, 2), weight, bias)  # (B, L, pool · out_channels)
        return frames.unflatten(-1, (self.pool, -1)).flatten(1, 2).transpose(1, 2)
