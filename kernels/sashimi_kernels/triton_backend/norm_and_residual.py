"""A channel norm and the residual connection around it.

The backward kernel of the norm adds the gradients of both. Autograd would add them in another kernel.
"""

from typing import Any

import torch
from torch import Tensor

from sashimi_kernels.triton_backend.channel_norm import channel_norm, channel_norm_backward, layer_norm, scalar_norm


def norm_and_residual(
    x: Tensor, norm: str, weight: Tensor, offset: Tensor, bias: Tensor | None, epsilon: float
) -> tuple[Tensor, Tensor]:
    """Return the norm of x plus the bias, and x.

    Args:
        x: float32, float16 or bfloat16 (B, H, L).
        norm: "scalar" or "layer".
        weight, offset: parameters of the norm, (1,) or (H,).
        bias: (B, H), or None.
        epsilon: added to the variance.
    """
    if not torch.is_grad_enabled():
        return (scalar_norm if norm == "scalar" else layer_norm)(x, weight, offset, bias, epsilon), x
    bias = None if bias is None else bias.float()
    return _NormAndResidual.apply(x, weight.float(), offset.float(), bias, epsilon, norm == "scalar")


class _NormAndResidual(torch.autograd.Function):
    """``channel_norm`` with its input as second output."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor | None, epsilon: float, scalar: bool
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.has_bias, ctx.epsilon, ctx.scalar = bias is not None, epsilon, scalar
        ctx.save_for_backward(x, weight, offset)
        return channel_norm(x, weight, offset, bias, epsilon, scalar), x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dresidual: Tensor | None) -> tuple[Tensor | None, ...]:
        if dy is None:  # nothing depends on the norm
            return dresidual, None, None, None, None, None
        has_bias = ctx.has_bias and ctx.needs_input_grad[3]
        *gradients, dbias = channel_norm_backward(dy, dresidual, *ctx.saved_tensors, has_bias, ctx.epsilon, ctx.scalar)
        return *gradients, dbias if has_bias else None, None, None
