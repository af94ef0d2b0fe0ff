"""The order of the calls in a sampling loop: from a step on, and with jumps back to noisier levels.

A *step* leads from one noise level of the scheduler to the next one, and needs one call of the network or, in
schedulers of second order, two. At the beginning of step k, the noisy sample is x = a_k x_0 + s_k eps
(:class:`Level`): a_k and s_k are sqrt(abar) and sqrt(1 - abar), or 1 and sigma, or, for flow matching, 1 - sigma and
sigma. This is read from what the scheduler exposes, so it holds for every kind of prediction.
"""

import math
import numbers
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from diffusers import LMSDiscreteScheduler, PNDMScheduler
from torch import Tensor

from sashimi_diffusion.arguments import short_form
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.schedulers.noise_paths import Level

CLEAN = Level(1.0, 0.0)

DEFAULT_JUMPS = 1
"""How often stretches of steps are repeated by default."""

STRETCH = 0.05
"""Length of a stretch as a share of all steps."""


def checked_jumps(jumps: Any, used: bool) -> int:
    """Return the number of jumps of a call.

    Args:
        jumps: the argument of the pipeline; None is the default.
        used: whether the result keeps samples of given audio.

    Raises:
        UserError: it is no whole number of at least 0, or nothing is kept.
    """
    if not used:
        if jumps is not None:
            raise UserError("jumps was given without a mask or a continuation: leave it out")
        return 0
    if jumps is None:
        return DEFAULT_JUMPS
    if isinstance(jumps, bool) or not isinstance(jumps, numbers.Integral) or jumps < 0:
        raise UserError(f"jumps is {short_form(jumps)}: expected a whole number from 0 on")
    return int(jumps)


class Call(NamedTuple):
    """A call of the network.

    Args:
        timestep: its timestep on the CPU, ().
        step: the step to which it belongs.
        back_from: None, or the step from which sampling jumps back to ``step`` before this call.
        reached: the step that begins after this call; None in the middle of a step.
    """

    timestep: Tensor
    step: int
    back_from: int | None
    reached: int | None


class Schedule:
    """The steps of a scheduler whose timesteps were set.

    Args:
        scheduler: a scheduler; its attributes are those of diffusers after ``set_timesteps``.

    Attributes:
        levels: the level of the noisy sample at the beginning of each step, and, last, the clean one.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler
        self._calls: Tensor = scheduler.timesteps
        self._order = getattr(scheduler, "order", 1)
        self._repeats = isinstance(scheduler, PNDMScheduler)
        # In PNDM, the second step calls the network twice; its Runge-Kutta beginning has a fixed place.
        self._from_start_only = self._repeats and not scheduler.config.skip_prk_steps
        timesteps = self._calls[:: self._order]
        if self._repeats and not self._from_start_only and len(timesteps) > 2:
            timesteps = torch.cat([timesteps[:1], timesteps[2:]])
        self._timesteps = timesteps
        self.levels = [*_levels(scheduler, timesteps, self._order), CLEAN]
        self._fresh = _attributes(scheduler)

    def __len__(self) -> int:
        return len(self._timesteps)

    def first_step(self, strength: float) -> int:
        """Return the step that begins nearest to the share ``strength`` of the training schedule.

        Schedulers without a training schedule of their own, as for flow matching, run this share of their steps.
        """
        if strength == 1:
            return 0
        trained = getattr(self._scheduler, "alphas_cumprod", None)
        if trained is None:
            return len(self) - max(1, round(strength * len(self)))
        return int((self._timesteps.double() + 1 - strength * len(trained)).abs().argmin())

    def check_strength(self, strength: float) -> None:
        """Raise UserError if even the last step begins at more than twice this share of the training schedule.

        The variation would change far more of the audio than was asked for.
        """
        trained = getattr(self._scheduler, "alphas_cumprod", None)
        least = 1 / len(self) if trained is None else (float(self._timesteps[-1]) + 1) / len(trained)
        if strength < least / 2:
            raise UserError(
                f"strength is {strength:g}, and the last of {len(self)} sampling steps begins at {least:.3g} of the "
                "noise schedule: choose a larger strength, or more steps"
            )

    def calls(self, start: int = 0, jumps: int = 0) -> list[Call]:
        """Return the calls of a loop.

        Args:
            start: the first step.
            jumps: how often each stretch of steps is repeated: at its end, sampling jumps back to its beginning.

        Raises:
            UserError: the scheduler can only run all of its steps in order.
        """
        if self._from_start_only:
            if start or jumps:
                raise UserError(
                    "PNDMScheduler with Runge-Kutta steps cannot begin in the middle: use create_scheduler('pndm', ...)"
                )
            last = len(self._calls) - 1
            return [Call(t, i, None, i + 1 if i < last else len(self)) for i, t in enumerate(self._calls)]
        stretches = [(start, len(self))]
        if jumps:
            length = max(1, round(STRETCH * len(self)))
            begins = range(start, len(self), length)
            stretches = [(one, min(one + length, len(self))) for one in begins for _ in range(jumps + 1)]
        return list(self._calls_of(stretches))

    def _calls_of(self, stretches: list[tuple[int, int]]) -> Iterator[Call]:
        since, reached = 0, stretches[0][0]
        for begin, end in stretches:
            back_from = None if begin == reached else reached
            since = since if back_from is None else 0  # steps since the scheduler began or jumped
            for step in range(begin, end):
                timesteps = self._of_step(step, since)
                for number, timestep in enumerate(timesteps, start=1):
                    yield Call(timestep, step, back_from, step + 1 if number == len(timesteps) else None)
                    back_from = None
                since += 1
            reached = end

    def _of_step(self, step: int, since: int) -> list[Tensor]:
        """Return the timesteps of the calls of a step, the ``since``-th one after the scheduler began."""
        if self._repeats:
            return [self._timesteps[step]] * (2 if since == 1 else 1)
        return list(self._calls[step * self._order : (step + 1) * self._order])

    def begin(self, step: int) -> None:
        """Set the scheduler to its state before ``step``: it forgets all earlier steps."""
        vars(self._scheduler).update({name: _copied(value) for name, value in self._fresh.items()})
        if isinstance(self._scheduler, LMSDiscreteScheduler):
            # Its coefficients are those of all steps from the first one on, whatever its begin index is.
            vars(self._scheduler).update(sigmas=self._fresh["sigmas"][step:], timesteps=self._calls[step:])
        elif hasattr(self._scheduler, "set_begin_index"):
            self._scheduler.set_begin_index(step * self._order)


def _attributes(scheduler: Any) -> dict[str, Any]:
    """Return the attributes of a scheduler; it changes its lists in place, and replaces its tensors."""
    return {name: _copied(value) for name, value in vars(scheduler).items()}


def _copied(value: Any) -> Any:
    return list(value) if isinstance(value, list) else value


def _levels(scheduler: Any, timesteps: Tensor, order: int) -> list[Level]:
    """Return the level at the beginning of each step."""
    sigmas = getattr(scheduler, "sigmas", None)
    if sigmas is None:
        return [_interpolated(scheduler.alphas_cumprod, t) for t in timesteps.tolist()]
    own = [sigmas[step * order] for step in range(len(timesteps))]
    if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):  # solvers that keep the variance
        return [Level(*map(float, scheduler._sigma_to_alpha_sigma_t(sigma))) for sigma in own]
    if hasattr(scheduler, "scale_noise"):  # flow matching
        return [Level(1 - float(sigma), float(sigma)) for sigma in own]
    return [Level(1.0, float(sigma)) for sigma in own]


def _interpolated(alphas_cumprod: Tensor, timestep: float) -> Level:
    """Return the level of a timestep; between those of the training, sqrt(abar) is linear, as in DiffWave."""
    below = math.floor(timestep)
    fraction = timestep - below
    signal = math.sqrt(float(alphas_cumprod[below]))
    if fraction:
        signal += fraction * (math.sqrt(float(alphas_cumprod[below + 1])) - signal)
    return Level(signal, math.sqrt(1 - signal**2))
