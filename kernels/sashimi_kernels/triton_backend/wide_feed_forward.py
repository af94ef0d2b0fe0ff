"""The feed-forward layer with any number of channels, in three launches: the norm and both linear maps.

    n = norm(x)    g = GELU(W₁ n + b₁)    y = x + W₂ g + b₂ + skip

The backward pass recomputes n and h = W₁ n + b₁, so that x is the only signal that is saved:

    dh = (W₂ᵀ dy) GELU'(h)    dn = W₁ᵀ dh    dW₂ = Σ dy GELU(h)ᵀ    db₂ = Σ dy    dW₁ = Σ dh nᵀ    db₁ = Σ dh

and the kernel of the norm's backward pass takes dn and adds dy, the gradient of the residual connection.
"""

import torch
from torch import Tensor

from sashimi_kernels.triton_backend.channel_norm import channel_norm_backward, layer_norm, scalar_norm
from sashimi_kernels.triton_backend.weight_gradient import n_shares, share_sums
from sashimi_kernels.triton_backend.wide_linear import transposed_linear, wide_linear


def wide_feed_forward(
    x: Tensor,
    norm_weight: Tensor,
    norm_offset: Tensor,
    input_weight: Tensor,
    input_bias: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
    skip: Tensor | None,
    epsilon: float,
    layer: bool,
) -> Tensor:
    """Return x + W₂ GELU(W₁ norm(x) + b₁) + b₂ + skip, where L is a multiple of 8."""
    normalized = (layer_norm if layer else scalar_norm)(x, norm_weight, norm_offset, None, epsilon)
    inner = wide_linear(normalized, input_weight, input_bias, "gelu")
    return wide_linear(inner, output_weight, output_bias, "linear", x, *([] if skip is None else [skip]))


def wide_feed_forward_backward(
    dy: Tensor,
    x: Tensor,
    norm_weight: Tensor,
    norm_offset: Tensor,
    input_weight: Tensor,
    input_bias: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
    epsilon: float,
    layer: bool,
    weights: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, of the norm's parameters and of the maps' parameters, each one after the other.

    If not ``weights``, only the gradient of x is returned, and the others are empty. ``x`` and ``dy`` are contiguous.
    """
    normalized = (layer_norm if layer else scalar_norm)(x, norm_weight, norm_offset, None, epsilon)
    h = wide_linear(normalized, input_weight, input_bias)
    dh = transposed_linear(dy, output_weight, h)
    dn = transposed_linear(dh, input_weight)
    norm = (norm_weight.float(), norm_offset.float())
    dx, *dnorm, _ = channel_norm_backward(dn, dy, x, *norm, False, epsilon, not layer)
    if not weights:
        return dx, x.new_empty(0), x.new_empty(0)
    n_input = input_weight.numel() + input_bias.numel()
    n_output = output_weight.numel() + output_bias.numel()
    sums = x.new_empty(n_shares(x, *input_weight.shape), n_input + n_output, dtype=torch.float32)
    share_sums(sums[:, :n_input], dh, normalized)
    share_sums(sums[:, n_input:], dy, h, gelu=True)
    return dx, torch.cat(dnorm).to(norm_weight.dtype), sums.sum(0).to(input_weight.dtype)
