"""Linear maps of the channels in plain PyTorch, alone, with a gate, and as a feed-forward layer.

On a CPU, matrix products are fastest if the channels of a position are adjacent in memory, and so are PyTorch's norms
(see :mod:`sashimi_kernels.torch_backend.channelwise`). Results have this layout there. On other devices they are
contiguous, so that the samples of a channel are adjacent, as the Triton kernels read them fastest.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from sashimi_kernels import layout
from sashimi_kernels.torch_backend.channelwise import gated_residual, layer_norm, scalar_norm


def pointwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return weight · x + bias at every position, by one matrix product per batch element or for all of them."""
    if layout.samples_adjacent(x):
        return _contiguous_pointwise(x, weight, bias)
    weight, bias = weight.to(x.dtype), bias.to(x.dtype)
    if x.shape[0] == 1:  # for a 2-D input, one matrix product also adds the bias, in any memory layout
        return F.linear(x.squeeze(0).T, weight, bias).T.unsqueeze(0)
    return F.linear(x.transpose(1, 2), weight, bias).transpose(1, 2)


def gated_linear(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
    """Compute GELU, the linear map and the gate one after the other; without gradients, GELU overwrites ``x``."""
    y = pointwise(gelu(x), weight, bias)
    return F.glu(y, dim=1) if residual is None else gated_residual(y, residual)


def feed_forward(
    x: Tensor,
    norm: str,
    norm_weight: Tensor,
    norm_offset: Tensor,
    epsilon: float,
    input_weight: Tensor,
    input_bias: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
    skip: Tensor | None,
) -> Tensor:
    """Compute the norm, both linear maps and the sums one after the other."""
    normalize = scalar_norm if norm == "scalar" else layer_norm
    inner = pointwise(normalize(x, norm_weight, norm_offset, None, epsilon), input_weight, input_bias)
    y = add(x, pointwise(gelu(inner), output_weight, output_bias))
    return y if skip is None else add(skip, y)


def _contiguous_pointwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    # Autocast would convert the expanded tensors, which have B times as many elements.
    device, dtype = x.device.type, x.dtype
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    batch, n_inputs, length = x.shape
    n_outputs = weight.shape[0]
    return torch.baddbmm(
        bias.to(dtype).unsqueeze(-1).expand(batch, n_outputs, length),
        weight.to(dtype).expand(batch, n_outputs, n_inputs),
        x.to(dtype),
    )


def gelu(x: Tensor) -> Tensor:
    """Return GELU(x), computed in place if no gradient is recorded; ``x`` must not be used afterwards."""
    return F.gelu(x) if torch.is_grad_enabled() else torch.ops.aten.gelu_(x)


def add(x: Tensor, y: Tensor) -> Tensor:
    """Return x + y; y must not be used afterwards. The result is written over y if the dtypes are equal."""
    return y.add_(x) if y.dtype == x.dtype else x + y
