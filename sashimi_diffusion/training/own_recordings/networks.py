"""The sizes of networks that a run on own recordings may have, from large to small."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sashimi_diffusion.training.own_recordings.window import Limits

_GPU_POOLS = (4, 4)  # after the first factor


@dataclass(frozen=True)
class Size:
    """A size of a network.

    Args:
        d_model: features at the raw rate.
        n_layers: blocks of each stage, the raw rate first.
        checkpointing: whether activations are computed again in the backward pass.
    """

    d_model: int
    n_layers: tuple[int, ...]
    checkpointing: bool = False

    @property
    def settings(self) -> dict[str, Any]:
        """The settings of the group ``model``."""
        return {"d_model": self.d_model, "n_layers": list(self.n_layers)}


def limits_of(autoregressive: bool, device: torch.device) -> Limits:
    """Return the limits of the training examples; a CPU computes hundreds of times fewer samples in the same time."""
    if autoregressive:
        return Limits(16000, 16384 if device.type == "cpu" else 65536)
    return Limits(16000, 16384) if device.type == "cpu" else Limits(48000, 131072)


def pools_of(autoregressive: bool, device: torch.device, sample_rate: int) -> tuple[int, ...]:
    """Return the pooling factors.

    Most blocks of a denoiser run at about 1 kHz or less on a CPU, and at about 4 kHz or less on a GPU.
    """
    if autoregressive:
        return (4, 4)
    first = 2 ** max(1, int(sample_rate / 900).bit_length() - 1)  # 8 at 8 kHz, 16 at 16 kHz, 32 at 44.1 kHz
    return (first, 2) if device.type == "cpu" else (max(2, first // 4), *_GPU_POOLS)


def sizes_of(autoregressive: bool, device: torch.device) -> Sequence[Size]:
    """Return the sizes from large to small; the last one recomputes activations, for devices with little memory."""
    if autoregressive and device.type == "cpu":
        sizes = [Size(32, (2, 3, 2)), Size(24, (2, 2, 2))]
    elif autoregressive:
        sizes = [Size(64, (8, 8, 8)), Size(64, (4, 4, 4)), Size(32, (4, 4, 4))]
    elif device.type == "cpu":
        sizes = [Size(48, (0, 2, 5)), Size(32, (0, 2, 4))]
    else:
        sizes = [Size(64, (0, 2, 4, 6)), Size(48, (0, 2, 4, 6)), Size(32, (0, 2, 4, 6))]
    return [*sizes, Size(sizes[-1].d_model, sizes[-1].n_layers, checkpointing=True)]
