"""Norms over the channels and the gated residual in plain PyTorch, in as few passes over memory as eager mode allows.

PyTorch's layer norm is one pass where the channels of a position lie side by side, several times faster on a CPU than
statistics across strided channels; results are laid out so, and an input that is not is copied once.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def scalar_norm(x: Tensor, gain: Tensor, shift: Tensor, bias: Tensor | None, epsilon: float) -> Tensor:
    """The layer norm with one gain, and the shift, which it multiplies by the inverse deviation, added to it."""
    rows = _at_least_float32(x).transpose(1, 2)  # (B, L, H)
    # The bias of one waveform is a vector over the channels, which PyTorch's layer norm adds in its own pass.
    single = bias is not None and len(bias) == 1
    y = _ScalarNorm.apply(rows, gain, shift, bias.squeeze(0) if single else None, epsilon)
    if bias is not None and not single:
        y = y.add_(bias.unsqueeze(1))
    return y.to(x.dtype).transpose(1, 2)


def layer_norm(x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor | None, epsilon: float) -> Tensor:
    """PyTorch's, on the transposed input."""
    rows = _at_least_float32(x).transpose(1, 2)  # (B, L, H)
    y = F.layer_norm(rows, weight.shape, weight.to(rows.dtype), offset.to(rows.dtype), epsilon)
    if bias is not None:
        y = y.add_(bias.unsqueeze(1))
    return y.to(x.dtype).transpose(1, 2)


def gated_residual(x: Tensor, residual: Tensor) -> Tensor:
    """The gate in one pass, the sum in another, in place where the dtypes let it."""
    if x.dtype != residual.dtype:
        return (residual + F.glu(x, dim=1)).to(residual.dtype)
    return _GatedResidual.apply(x, residual)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _ScalarNorm(torch.autograd.Function):
    """gain · (x - mean + shift) / deviation + bias over the last axis, with the derivative through the deviation."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, shift: Tensor, bias: Tensor | None, epsilon: float) -> Tensor:
        x, gain, shift = x.contiguous(), gain.to(x.dtype), shift.to(x.dtype)
        weight = gain.expand(x.shape[-1]).contiguous()
        bias = None if bias is None else bias.to(x.dtype)
        y, mean, inverse = torch.native_layer_norm(x, weight.shape, weight, bias, epsilon)  # (B, L, H), 2 × (B, L, 1)
        ctx.save_for_backward(x, weight, gain, shift, mean, inverse)
        return y.add_(inverse * (gain * shift))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None, None]:
        x, weight, gain, shift, mean, inverse = ctx.saved_tensors
        gradient = gradient.contiguous()
        mask = [True, True, ctx.needs_input_grad[3]]
        dx, d_weight, d_bias = torch.ops.aten.native_layer_norm_backward(
            gradient, x, weight.shape, mean, inverse, weight, weight if mask[2] else None, mask
        )
        total = gradient.sum(-1, keepdim=True)  # (B, L, 1)
        d_shifted = (total * inverse).sum().reshape(1)
        # d inverse / dx = -inverse³ (x - mean) / H
        slope = total * inverse**3 * (gain * shift / -x.shape[-1])
        dx = dx.addcmul_(x, slope).sub_(slope * mean)
        return dx, d_weight.sum().reshape(1) + shift * d_shifted, gain * d_shifted, d_bias, None


class _GatedResidual(torch.autograd.Function):
    """PyTorch's derivative of the gate takes three times as long where the channels lie side by side."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.glu(x, dim=1).add_(residual)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (x,) = ctx.saved_tensors
        if x.is_contiguous():
            return torch.ops.aten.glu_backward(gradient, x, 1), gradient
        value, gate = x.transpose(1, 2).chunk(2, dim=-1)  # (B, L, H)
        opening = gate.clone(memory_format=torch.contiguous_format).sigmoid_()
        d_value = gradient.transpose(1, 2) * opening
        d_gate = opening.neg_().add_(1).mul_(value).mul_(d_value)
        return torch.cat([d_value, d_gate], dim=-1).transpose(1, 2), gradient
