"""Channel norms and the gated residual in plain PyTorch, with few passes over memory.

PyTorch's layer norm takes one pass if the channels of a position are adjacent in memory. On a CPU this is several times
faster than statistics over strided channels. Inputs with another layout are therefore copied, and the results have this
layout.
"""

import functools
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sashimi_kernels.derivatives import gradients_of
from sashimi_kernels.reference.channelwise import scalar_norm as reference_scalar_norm


def scalar_norm(x: Tensor, gain: Tensor, shift: Tensor, bias: Tensor | None, epsilon: float) -> Tensor:
    """Apply PyTorch's layer norm with equal weights, then add gain · shift / deviation and the bias."""
    rows = _at_least_float32(x).transpose(1, 2).contiguous()  # (B, L, H)
    gain, shift = gain.to(rows.dtype), shift.to(rows.dtype)
    # PyTorch's layer norm adds the bias of a single batch element in its own pass.
    row_bias = bias.squeeze(0).to(rows.dtype) if bias is not None and len(bias) == 1 else None
    y = _ScalarNorm.apply(rows, gain, shift, row_bias, epsilon)
    if bias is not None and row_bias is None:
        y = y.add_(bias.unsqueeze(1))
    return y.to(x.dtype).transpose(1, 2)


def layer_norm(x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor | None, epsilon: float) -> Tensor:
    """Apply PyTorch's layer norm to the transposed input."""
    rows = _at_least_float32(x).transpose(1, 2)  # (B, L, H)
    y = F.layer_norm(rows, weight.shape, weight.to(rows.dtype), offset.to(rows.dtype), epsilon)
    if bias is not None:
        y = y.add_(bias.unsqueeze(1))
    return y.to(x.dtype).transpose(1, 2)


def gated_residual(x: Tensor, residual: Tensor) -> Tensor:
    """Compute the gate in one pass and the sum in another, in place if the dtypes allow it."""
    if x.dtype != residual.dtype:
        return (residual + F.glu(x, dim=1)).to(residual.dtype)
    return _GatedResidual.apply(x, residual)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _scalar_norm_definition(x: Tensor, gain: Tensor, shift: Tensor, bias: Tensor | None, epsilon: float) -> Tensor:
    """Return what :class:`_ScalarNorm` computes, from differentiable operations."""
    bias = None if bias is None else bias.unsqueeze(0)
    return reference_scalar_norm(x.transpose(1, 2), gain, shift, bias, epsilon).transpose(1, 2)


class _ScalarNorm(torch.autograd.Function):
    """gain · (x - mean + shift) / deviation + bias over the last axis of a contiguous x, (B, L, H).

    With the normalized input x̂ and r = 1 / deviation, the gradient of x is r (e - <e> - x̂ (<e x̂> + shift r <e>)),
    where e = gain · dy and <·> is the mean over the channels. It has no power of r above the second, so it is finite in
    float32 even if all channels are equal and epsilon is 1e-30.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, shift: Tensor, bias: Tensor | None, epsilon: float) -> Tensor:
        weight = gain.expand(x.shape[-1]).contiguous()
        y, _, inverse = torch.native_layer_norm(x, weight.shape, weight, bias, epsilon)  # (B, L, H), 2 × (B, L, 1)
        ctx.epsilon = epsilon
        ctx.save_for_backward(x, gain, shift, bias, inverse)
        return y.add_(inverse * (gain * shift))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, gain, shift, bias, inverse = ctx.saved_tensors
        if torch.is_grad_enabled():
            definition = functools.partial(_scalar_norm_definition, epsilon=ctx.epsilon)
            return (*gradients_of(definition, (x, gain, shift, bias), ctx.needs_input_grad[:4], gradient), None)
        gradient = gradient.contiguous()
        weight = gain.expand(x.shape[-1]).contiguous()
        normalized = F.layer_norm(x, weight.shape, eps=ctx.epsilon)
        # For x̂, a mean of 0 and a deviation of 1, PyTorch's backward kernel returns e - <e> - x̂ <e x̂>.
        mask = [True, True, ctx.needs_input_grad[3]]
        mean, deviation = torch.zeros_like(inverse), torch.ones_like(inverse)
        dx, d_weight, d_bias = torch.ops.aten.native_layer_norm_backward(
            gradient, normalized, weight.shape, mean, deviation, weight, weight if mask[2] else None, mask
        )
        sum_times_inverse = gradient.sum(-1, keepdim=True) * inverse  # (B, L, 1)
        d_shifted = sum_times_inverse.sum().reshape(1)
        dx = dx.addcmul_(normalized, sum_times_inverse * (gain * shift / -x.shape[-1])).mul_(inverse)
        return dx, d_weight.sum().reshape(1) + shift * d_shifted, gain * d_shifted, d_bias, None


class _GatedResidual(torch.autograd.Function):
    """residual + glu(x).

    If the channels are adjacent in memory, the backward pass below is three times as fast as PyTorch's.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.glu(x, dim=1).add_(residual)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        (x,) = ctx.saved_tensors
        if x.is_contiguous() or torch.is_grad_enabled():  # only PyTorch's derivative is differentiable
            return torch.ops.aten.glu_backward(gradient, x, 1), gradient
        value, gate = x.transpose(1, 2).chunk(2, dim=-1)  # (B, L, H)
        sigmoid = gate.clone(memory_format=torch.contiguous_format).sigmoid_()
        d_value = gradient.transpose(1, 2) * sigmoid
        d_gate = sigmoid.neg_().add_(1).mul_(value).mul_(d_value)  # overwrites sigmoid
        return torch.cat([d_value, d_gate], dim=-1).transpose(1, 2), gradient
