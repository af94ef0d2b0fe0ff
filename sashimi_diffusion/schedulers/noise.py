"""Noise of sampling steps, and of their beginning."""

from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

Generators = torch.Generator | list[torch.Generator] | None


def draw_noise(
    shape: tuple[int, ...], generator: Generators, device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return the standard normal noise of diffusers' ``randn_tensor``, without waiting for a CUDA device.

    Generators on the CPU draw there, so that a seed gives the same audio on every device. ``randn_tensor`` then waits
    until the noise has been copied to the device; here the copy starts from pinned memory and is not waited for.

    Args:
        shape: (B, C, L).
        generator: one generator for all waveforms, or a list of B; None is the global generator of the device.
        device: device of the result.
        dtype: dtype of the result.
    """
    sources = generator if isinstance(generator, list) else [generator]
    if device.type != "cuda" or any(source is None or source.device.type != "cpu" for source in sources):
        return randn_tensor(shape, generator, device, dtype)
    noise = randn_tensor(shape, generator, torch.device("cpu"), dtype)
    return noise.pin_memory().to(device, non_blocking=True)


def initial_deviation(scheduler: Any) -> float:
    """Return the standard deviation of the noise from which sampling starts; 1 for flow matching."""
    return float(getattr(scheduler, "init_noise_sigma", 1.0))
