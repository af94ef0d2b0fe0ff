"""Averaged weights in a network of their own, ready for validation, sampling and saving."""

import torch
from diffusers import ModelMixin
from torch import nn


class Ema:
    """Exponential moving average of a network's weights.

    The decay at update n is min(decay, (1 + n)/(10 + n)): the average forgets its random start quickly, and a short run
    has a useful average. A network of its own beside the trained one, where diffusers' EMAModel would swap weights in
    and out at each use.

    Args:
        model: the network to follow; not changed.
        decay: the largest decay.
    """

    def __init__(self, model: ModelMixin, decay: float):
        self.decay = decay
        self.updates = 0
        self.model = type(model).from_config(model.config).to(model.device).eval().requires_grad_(False)
        self.model.load_state_dict(model.state_dict())

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards ``model``'s present weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
