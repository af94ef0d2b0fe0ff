"""Pools whose frames overlap by half, under a window that fades them in and out.

The published pools process each frame by itself. Their output may step at every border of two frames, which sounds as
a tone at the rate of the frames. Here a pool with factor p has frames of 2p samples, one every p samples.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sashimi_diffusion.models.layers import NormalizedWeight


class OverlappingPool(nn.Module):
    """Base class: a linear map between the channels at the lower rate and frames at the higher rate.

    Args:
        lower, upper: channels at the lower and at the higher rate.
        pool: samples p between two frames; a frame has 2p samples.
        weight_norm: weight normalization, with a magnitude for each channel at the lower rate.
        inputs: values that each output is a sum of.
        outputs: channels of the output.
    """

    def __init__(self, lower: int, upper: int, pool: int, weight_norm: bool, inputs: int, outputs: int) -> None:
        super().__init__()
        self.pool = pool
        weight = torch.empty(lower, upper * 2 * pool).uniform_(-1, 1) / inputs**0.5
        self.weight = NormalizedWeight(weight) if weight_norm else nn.Parameter(weight)
        self.bias = nn.Parameter(torch.empty(outputs).uniform_(-1, 1) / inputs**0.5)
        positions = (torch.arange(2 * pool) + 0.5) / (2 * pool)
        # Overlapping windows sum to one.
        self.register_buffer("window", torch.sin(torch.pi * positions).square(), persistent=False)

    def filters(self, x: Tensor) -> Tensor:
        """Return the weights under the window, (lower, upper, 2 · pool), in the dtype of ``x``."""
        weight = self.weight() if isinstance(self.weight, NormalizedWeight) else self.weight
        return (weight.unflatten(1, (-1, 2 * self.pool)) * self.window).to(x.dtype)


class OverlappingDownPool(OverlappingPool):
    """Map (B, H, L) to (B, out_channels, L / pool)."""

    def __init__(self, in_channels: int, out_channels: int, pool: int, weight_norm: bool) -> None:
        super().__init__(out_channels, in_channels, pool, weight_norm, in_channels * pool, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        before = self.pool // 2
        x = F.pad(x, (before, self.pool - before))
        return F.conv1d(x, self.filters(x), self.bias.to(x.dtype), stride=self.pool)


class OverlappingUpPool(OverlappingPool):
    """Map (B, H, L) to (B, out_channels, L · pool): overlapping frames are added."""

    def __init__(self, in_channels: int, out_channels: int, pool: int, weight_norm: bool) -> None:
        super().__init__(in_channels, out_channels, pool, weight_norm, in_channels, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        before = self.pool // 2
        frames = F.conv_transpose1d(x, self.filters(x), self.bias.to(x.dtype), stride=self.pool)
        return frames[..., before : before + x.shape[-1] * self.pool]
