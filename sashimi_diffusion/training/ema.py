"""Exponential moving average of a network's weights.

It replaces diffusers' EMAModel. Here the average is a second network, so validation, sampling and saving use it without
swapping weights.
"""

import copy
from typing import Any

import torch
from torch import nn

from sashimi_diffusion.models.adapters import LoraAdapters


class Ema:
    """Exponential moving average of a network's weights.

    The decay of update n is min(decay, (1 + n)/(10 + n)): the average forgets its random start quickly, and a short run
    has a useful average.

    Args:
        model: the diffusers model, or a module that contains it, with the weights to average; it is not changed.
        decay: the largest decay.

    Attributes:
        model: a network of the same class with the averaged weights, in evaluation mode.
    """

    def __init__(self, model: Any, decay: float) -> None:
        self.decay = decay
        self.model: Any = _copy(model).eval().requires_grad_(False)
        self._updates = torch.zeros((), dtype=torch.int64, device=model.device)

    @property
    def updates(self) -> int:
        """The number of updates so far; reading it waits for the device."""
        return int(self._updates)

    @updates.setter
    def updates(self, number: int) -> None:
        self._updates.fill_(number)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the current weights of ``model``, and copy its buffers."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - decay)
        for averaged, current in zip(self.model.buffers(), model.buffers(), strict=True):
            averaged.copy_(current)

    @torch.no_grad()
    def update_where(self, usable: torch.Tensor, model: nn.Module) -> None:
        """Call :meth:`update` if ``usable``, a Boolean scalar on the device of the model, is true.

        The decision is made on the device, without a wait.
        """
        self._updates.add_(usable)
        updates = self._updates.double()
        decay = ((1 + updates) / (10 + updates)).clamp(max=self.decay)
        averages: list[torch.Tensor] = list(self.model.parameters())
        weights: list[torch.Tensor] = list(model.parameters())
        changes = torch._foreach_sub(weights, averages)
        torch._foreach_mul_(changes, ((1 - decay) * usable).to(weights[0].dtype))
        torch._foreach_add_(averages, changes)
        for averaged, current in zip(self.model.buffers(), model.buffers(), strict=True):
            averaged.copy_(torch.where(usable, current, averaged))


def _copy(model: Any) -> Any:
    """Return a network with the same weights, without what compilation has added."""
    adapted = isinstance(model, LoraAdapters) and model.adapter_names()  # no argument of the constructor describes them
    if adapted or not hasattr(model, "from_config"):
        return copy.deepcopy(model)
    network = type(model).from_config(model.config).to(model.device)
    network.load_state_dict(model.state_dict())
    return network
