"""Memory layout of features (B, H, L).

On a CPU, the channels of a position are adjacent in memory: matrix products over the channels, and PyTorch's norms, are
fastest so. On other devices, the samples of a channel are adjacent: Triton's kernels of the convolution and of the
pointwise maps read and write them in this order, and nothing is reordered between them.
"""

from torch import Tensor


def samples_adjacent(x: Tensor) -> bool:
    """Return whether results on the device of ``x`` have adjacent samples."""
    return x.device.type != "cpu"
