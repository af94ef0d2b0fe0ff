"""Convolutions with the weight normalization of the official code, or without it."""

from torch import nn
from torch.nn.utils.parametrizations import weight_norm as add_weight_norm

from sashimi_diffusion.ssm.pointwise import Pointwise


def conv1d(
    in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1, weight_norm: bool = True
) -> nn.Conv1d:
    """A convolution over (B, in_channels, L) that keeps the length; odd ``kernel_size``."""
    padding = dilation * (kernel_size - 1) // 2
    layer = nn.Conv1d(in_channels, out_channels, kernel_size, dilation=dilation, padding=padding)
    return add_weight_norm(layer) if weight_norm else layer


def pointwise(in_channels: int, out_channels: int, weight_norm: bool = True) -> Pointwise:
    """A linear map of the channels of (B, in_channels, L), the same at every position."""
    layer = Pointwise(in_channels, out_channels)
    return add_weight_norm(layer) if weight_norm else layer


def output_head(channels: int, out_channels: int, weight_norm: bool = True) -> nn.Sequential:
    """The end of a denoiser: a linear map, ReLU and a last linear map that is zero at first (DiffWave, 2009.09761)."""
    last = pointwise(channels, out_channels, weight_norm=False)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(pointwise(channels, channels, weight_norm), nn.ReLU(), last)
