"""Reference implementations of the gated linear map and of the feed-forward layer."""

from torch import Tensor
from torch.nn import functional as F

from sashimi_kernels.reference.channelwise import layer_norm, scalar_norm


def gated_linear(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
    """Return residual + a · sigmoid(b) for the halves a, b of the channels of weight · GELU(x) + bias."""
    y = F.glu(_linear(F.gelu(x), weight, bias), dim=1)
    return y if residual is None else (residual + y).to(residual.dtype)


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
    """Return x + output_weight · GELU(input_weight · norm(x) + input_bias) + output_bias + skip."""
    normalize = scalar_norm if norm == "scalar" else layer_norm
    inner = _linear(normalize(x, norm_weight, norm_offset, None, epsilon), input_weight, input_bias)
    y = x + _linear(F.gelu(inner), output_weight, output_bias)
    return (y if skip is None else y + skip).to(x.dtype)


def _linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return weight.to(x.dtype) @ x + bias.to(x.dtype).unsqueeze(-1)
