"""A linear map of the channels, the same at every position."""

import torch
from torch import Tensor, nn


class Pointwise(nn.Conv1d):
    """A convolution of kernel size 1 over (B, in_channels, L), run as one batched matrix product.

    On a CPU that is up to twice as fast as the convolution routines for small numbers of channels.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.squeeze(-1).expand(x.shape[0], -1, -1)
        return torch.baddbmm(self.bias.unsqueeze(-1), weight, x)
