"""Reference implementations of the channel norms and of the gated residual."""

import torch
from torch import Tensor


def scalar_norm(x: Tensor, gain: Tensor, shift: Tensor, bias: Tensor | None, epsilon: float) -> Tensor:
    """Return gain · (x - mean + shift) / √(variance + epsilon) + bias."""
    centered, deviation = _moments(x, epsilon)
    return _add_bias(gain * (centered + shift) / deviation, bias).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor | None, epsilon: float) -> Tensor:
    """Return weight · (x - mean) / √(variance + epsilon) + offset + bias."""
    centered, deviation = _moments(x, epsilon)
    y = weight.unsqueeze(-1) * centered / deviation + offset.unsqueeze(-1)
    return _add_bias(y, bias).to(x.dtype)


def gated_residual(x: Tensor, residual: Tensor) -> Tensor:
    """Return residual + a · sigmoid(b)."""
    a, b = x.chunk(2, dim=1)
    return (residual + a * torch.sigmoid(b)).to(residual.dtype)


def _moments(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """Return x - mean over the channels, (B, H, L), and √(variance + epsilon), (B, 1, L)."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    n_channels = x.shape[1]
    centered = x - x.mean(1, keepdim=True)
    # If all channels are equal, the derivative of a vector norm is finite, but the derivative of √(variance + epsilon)
    # overflows for a small epsilon.
    floor = x.new_full((x.shape[0], 1, x.shape[2]), (n_channels * epsilon) ** 0.5)
    deviation = torch.linalg.vector_norm(torch.cat([centered, floor], dim=1), dim=1, keepdim=True)
    return centered, deviation / n_channels**0.5


def _add_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias.unsqueeze(-1)
