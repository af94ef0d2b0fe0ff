"""Choose the size of the network, the batch size and the number of steps for a device and a number of minutes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.memory import available_memory
from sashimi_diffusion.terminal import counted
from sashimi_diffusion.training.own_recordings.networks import Size
from sashimi_diffusion.training.own_recordings.step_cost import Cost, OutOfMemory

USEFUL_STEPS = 2000
"""A network that takes fewer steps within the minutes is larger than they allow."""
FEWEST_STEPS = 20
"""With fewer steps, a run is over before the learning rate has risen."""
_SPARE = 2.0  # the suggested minutes allow this many times FEWEST_STEPS: a second measurement may be slower
_ROUND_MINUTES = (1, 2, 5, 10, 15, 20, 30, 45)

_SMALLEST_USEFUL_BATCH = 4  # fewer examples are used only if the memory is not enough
_USED_MEMORY = {"cpu": 0.5, "cuda": 0.8}  # share of the free memory; the rest is for data, samples and a CUDA graph


@dataclass(frozen=True)
class Budget:
    """What a run can do within its minutes.

    Args:
        size: of the network.
        cost: of its training steps, as measured.
        batch_size: examples of a step.
        steps: number of steps that are expected within the minutes.
    """

    size: Size
    cost: Cost
    batch_size: int
    steps: int

    @property
    def memory(self) -> str:
        """The memory of the network, the optimizer and a step, in words."""
        return f"{self.cost.memory_of(self.batch_size) / 1e9:.2f} GB"


def choose_budget(
    sizes: Sequence[Size], measure: Callable[[Size], Cost], device: torch.device, minutes: float, largest_batch: int
) -> Budget:
    """Return the largest network that takes ``USEFUL_STEPS`` steps within the minutes and fits into the memory.

    If none takes so many, it is the smallest one that keeps its activations in memory; if none of these fits, the last.

    Args:
        sizes: sizes of networks, from large to small.
        measure: measures the steps of a network; raises OutOfMemory if a GPU has too little memory.
        device: of the run.
        minutes: of training.
        largest_batch: the largest batch size to use, a power of two.

    Raises:
        UserError: no network fits into the memory, or the minutes are too few.
    """
    memory = available_memory(device)
    limit = float("inf") if memory is None else memory * _USED_MEMORY[device.type]
    chosen: Budget | None = None
    for size in sizes:
        if size.checkpointing and chosen is not None:
            break
        try:
            budget = _with_batch(size, measure(size), limit, minutes, largest_batch)
        except OutOfMemory:
            continue
        chosen = budget or chosen
        if budget is not None and budget.steps >= USEFUL_STEPS:
            break
    if chosen is None:
        raise UserError(
            f"the free memory of {device} ({0 if memory is None else memory / 1e9:.1f} GB) is not enough for a "
            "training step of the smallest network: end other programs, or choose another --device"
        )
    if chosen.steps < FEWEST_STEPS:
        step = chosen.cost.seconds_of(chosen.batch_size) / 60
        least, useful = _rounded_up(_SPARE * FEWEST_STEPS * step), _rounded_up(USEFUL_STEPS * step)
        raise UserError(
            f"{_in_minutes(minutes)} {'allows' if minutes == 1 else 'allow'} "
            f"{counted(chosen.steps, 'training step')} of the smallest network on {device}, which is too few: give at "
            f"least {_in_minutes(least)} (--minutes {least}); good results need about {_in_minutes(useful)}"
        )
    return chosen


def _in_minutes(minutes: float) -> str:
    """Return a number of minutes in words."""
    if minutes >= 120:
        return f"{minutes / 60:g} hours"
    return f"{minutes:g} minute{'' if minutes == 1 else 's'}"


def _rounded_up(minutes: float) -> int:
    """Return the next round number of minutes: one of ``_ROUND_MINUTES``, or full hours."""
    return next((number for number in _ROUND_MINUTES if number >= minutes), 60 * math.ceil(minutes / 60))


def _with_batch(size: Size, cost: Cost, limit: float, minutes: float, largest: int) -> Budget | None:
    """Return the largest batch size with which the steps are useful and fit into ``limit`` bytes; None if none does."""
    batch_size = largest
    while batch_size > 1 and cost.memory_of(batch_size) > limit:
        batch_size //= 2
    if cost.memory_of(batch_size) > limit:
        return None
    steps = int(60 * minutes / cost.seconds_of(batch_size))
    while batch_size > _SMALLEST_USEFUL_BATCH and steps < USEFUL_STEPS:
        batch_size //= 2
        steps = int(60 * minutes / cost.seconds_of(batch_size))
    return Budget(size, cost, batch_size, steps)
