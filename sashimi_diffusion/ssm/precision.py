"""Keeping state-space parameters in float32 whatever the rest of a model is cast to."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

_TOO_COARSE = (torch.float16, torch.bfloat16)


class KeepFloat32(nn.Module):
    """A module whose parameters stay float32 under ``.half()``, ``.bfloat16()`` and ``.to(dtype)``; devices do change.

    Eigenvalues close to the unit circle do not survive 8 bits of mantissa: a decay of 0.999 rounds to 1.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        def keep(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype in _TOO_COARSE else moved

        return super()._apply(keep, recurse)


def without_autocast(device: torch.device) -> AbstractContextManager:
    """A region autocast leaves alone: half precision has no FFT of most sizes, and too few bits for recurrences."""
    if torch.amp.is_autocast_available(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
