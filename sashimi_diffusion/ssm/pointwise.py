"""A linear map of the channels, the same at every position."""

from torch import Tensor, nn
from torch.nn import functional as F


class Pointwise(nn.Conv1d):
    """A convolution of kernel size 1 over (B, in_channels, L), run as one batched matrix product.

    On a CPU that is up to twice as fast as the convolution routines for small numbers of channels.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.squeeze(-1)
        return F.linear(x.transpose(1, 2), weight, self.bias).transpose(1, 2)
