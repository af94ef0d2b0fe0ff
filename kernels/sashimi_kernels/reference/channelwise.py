"""Norms over the channels and the gated residual, as their equations stand."""

import torch
from torch import Tensor


def scalar_norm(x: Tensor, gain: Tensor, shift: Tensor, bias: Tensor | None, epsilon: float) -> Tensor:
    """gain · (x - mean + shift) / √(variance + epsilon) + bias."""
    centered, deviation = _moments(x, epsilon)
    return _add_bias(gain * (centered + shift) / deviation, bias).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor | None, epsilon: float) -> Tensor:
    """weight · (x - mean) / √(variance + epsilon) + offset + bias."""
    centered, deviation = _moments(x, epsilon)
    y = weight.unsqueeze(-1) * centered / deviation + offset.unsqueeze(-1)
    return _add_bias(y, bias).to(x.dtype)


def gated_residual(x: Tensor, residual: Tensor) -> Tensor:
    """residual + a · sigmoid(b)."""
    a, b = x.chunk(2, dim=1)
    return (residual + a * torch.sigmoid(b)).to(residual.dtype)


def _moments(x: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """x - mean over the channels, (B, H, L), and √(variance + epsilon), (B, 1, L)."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    centered = x - x.mean(1, keepdim=True)
    return centered, torch.sqrt(centered.square().mean(1, keepdim=True) + epsilon)


def _add_bias(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias.unsqueeze(-1)
