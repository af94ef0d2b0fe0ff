"""Exponential moving average of a network's weights.

It replaces diffusers' EMAModel. Here the average is a second network, so validation, sampling and saving use it without
swapping weights.
"""

from typing import Any

import torch
from torch import nn


class Ema:
    """Exponential moving average of a network's weights.

    The decay of update n is min(decay, (1 + n)/(10 + n)): the average forgets its random start quickly, and a short run
    has a useful average.

    Args:
        model: the diffusers model with the weights to average; it is not changed.
        decay: the largest decay.

    Attributes:
        model: a network of the same class with the averaged weights, in evaluation mode.
        updates: number of updates so far.
    """

    def __init__(self, model: Any, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.model: Any = type(model).from_config(model.config).to(model.device).eval().requires_grad_(False)
        self.model.load_state_dict(model.state_dict())

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the current weights of ``model``, and copy its buffers."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)
        for averaged, current in zip(self.model.buffers(), model.buffers(), strict=True):
            averaged.copy_(current)
