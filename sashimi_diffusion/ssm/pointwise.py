"""A linear map of the channels of (B, channels, L)."""

from typing import cast

from torch import Tensor, nn

from sashimi_kernels import pointwise


class Pointwise(nn.Conv1d):
    """A convolution of kernel size 1 over (B, in_channels, L), computed as one batched matrix product.

    On a CPU this is up to twice as fast as the convolution routines for small numbers of channels.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, L) to (B, out_channels, L)."""
        return pointwise(x, self.weight.squeeze(-1), cast(Tensor, self.bias))
