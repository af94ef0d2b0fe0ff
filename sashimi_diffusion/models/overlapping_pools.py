"""Pools whose frames overlap by half, under a window that fades them in and out.

The published pools process each frame by itself. Their output may step at every border of two frames, which sounds as
a tone at the rate of the frames. Here a pool with factor p has frames of 2p samples, one every p samples.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sashimi_diffusion.models.blocks import DownPool, UpPool
from sashimi_diffusion.models.layers import NormalizedWeight, WeightNormPointwise


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

    def plain_weight(self) -> Tensor:
        """Return the weight, (lower, upper · 2 · pool), without its parametrization."""
        return self.weight() if isinstance(self.weight, NormalizedWeight) else self.weight

    @torch.no_grad()
    def assign(self, weight: Tensor) -> None:
        """Set the weight, (lower, upper · 2 · pool)."""
        if isinstance(self.weight, NormalizedWeight):
            self.weight.assign(weight)
        else:
            self.weight.copy_(weight)

    def filters(self, x: Tensor) -> Tensor:
        """Return the weights under the window, (lower, upper, 2 · pool), in the dtype of ``x``."""
        return (self.plain_weight().unflatten(1, (-1, 2 * self.pool)) * self.window).to(x.dtype)


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


@torch.no_grad()
def overlapping_pools_like(down: DownPool, up: UpPool) -> tuple[OverlappingDownPool, OverlappingUpPool]:
    """Return overlapping pools that compute the same as two published ones, for a network that goes on training.

    The weights of the samples outside of the published frame are zero. The bias of the up-pool is the exception: the
    published one has a value for each position in a frame, which is a constant tone at the rate of the frames. Here it
    is their mean.
    """
    pool, normalized = down.pool, isinstance(down.linear, WeightNormPointwise)
    upper, lower = down.linear.weight.shape[1] // pool, down.linear.weight.shape[0]
    wide_down = OverlappingDownPool(upper, lower, pool, normalized).to(down.linear.weight)
    wide_up = OverlappingUpPool(lower, upper, pool, normalized).to(up.linear.weight)
    for wide, frames in (
        (wide_down, down.linear.weight.reshape(lower, upper, pool)),
        (wide_up, up.linear.weight.reshape(upper, pool, lower).permute(2, 0, 1)),
    ):
        before = pool // 2
        weight = torch.zeros(lower, upper, 2 * pool).to(frames)
        window = cast(Tensor, wide.window)
        weight[..., before : before + pool] = frames / window[before : before + pool]
        wide.assign(weight.flatten(1))
    wide_down.bias.copy_(cast(Tensor, down.linear.bias))
    wide_up.bias.copy_(cast(Tensor, up.linear.bias).unflatten(0, (upper, pool)).mean(dim=1))
    return wide_down, wide_up
