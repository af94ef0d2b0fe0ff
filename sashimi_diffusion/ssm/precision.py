"""Float32 precision of state-space parameters, independent of the dtype of the rest of a model."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

_HALF_PRECISION = (torch.float16, torch.bfloat16)


class KeepFloat32(nn.Module):
    """Module with parameters that are not cast to half precision.

    ``.half()``, ``.bfloat16()`` and ``.to(dtype)`` with one of these dtypes leave the parameters in float32;
    ``.to(device)`` and ``.double()`` work as in any module. Half precision is too coarse for eigenvalues close to the
    unit circle: a decay of 0.999 rounds to 1.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        def keep(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype in _HALF_PRECISION else moved

        return super()._apply(keep, recurse)


def without_autocast(device: torch.device) -> AbstractContextManager:
    """Return a context that disables autocast: half precision has no FFT of most sizes and is too coarse for states."""
    if _has_autocast(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()


def in_autocast_dtype(x: Tensor) -> Tensor:
    """Return features on a GPU in the dtype of autocast, if it is enabled, so that all layers keep this dtype.

    On a CPU each operation decides by itself: many have no fast path in half precision.
    """
    device = x.device.type
    if device == "cpu" or not _has_autocast(device) or not torch.is_autocast_enabled(device):
        return x
    return x.to(torch.get_autocast_dtype(device))


# torch.compile calls this function once and treats its result as a constant; before PyTorch 2.11 it cannot trace it.
@torch.compiler.assume_constant_result
def _has_autocast(device_type: str) -> bool:
    return torch.amp.is_autocast_available(device_type)
