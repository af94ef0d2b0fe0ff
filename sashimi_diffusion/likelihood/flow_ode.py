"""The probability-flow ODE of a diffusion model (arXiv 2011.13456, section 4.3) and two integrators.

With the noise level s and w = -arsinh(1 / s), the waveforms x of :mod:`sashimi_diffusion.schedulers.noise_paths` have

    dx/dw = v(x, s) / cosh(w),    d log p(x)/dw = -trace(dv/dx) / cosh(w).

The variable w follows the logarithm of the level where noise is weak and ends at 0 where everything is noise. So the
right side is bounded, and the result does not depend on the timesteps of the training schedule. The trace is estimated
with the probes of Hutchinson: it is the mean of probe · dv/dx · probe.
"""

import math
import numbers
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.schedulers.noise_paths import NoisePath

METHODS = ("rk45", "heun")
LEAST_TOLERANCE = 1e-6
"""Smallest tolerance of the adaptive integrator: waveforms are float32, whose rounding would exceed smaller ones."""
MAX_EVALUATIONS = 10_000
"""Evaluations after which the adaptive integrator gives up."""
NOT_FINITE = (
    "the likelihood is not finite: the recordings are far louder than those of the training (see gain), or the weights "
    "of the model are unusable"
)

# Dormand and Prince 1980: nodes, stages, and the difference of the solutions of orders five and four.
_NODES = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
_STAGES = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_ERROR = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


class State(NamedTuple):
    """A point of the ODE, or its derivative.

    Args:
        x: waveforms, float32 (B, C, L).
        trace: integral of the trace for each probe, float64 (P, B).
    """

    x: Tensor
    trace: Tensor

    def plus(self, factor: float, slopes: list["State"], weights: tuple[float, ...]) -> "State":
        """Return this state plus ``factor`` times the weighted sum of slopes."""
        used = [(weight, slope) for weight, slope in zip(weights, slopes, strict=True) if weight]
        x = sum((factor * weight * slope.x for weight, slope in used), self.x)
        return State(x, sum((factor * weight * slope.trace for weight, slope in used), self.trace))


@dataclass(frozen=True)
class Integrator:
    """How the ODE is solved.

    Args:
        method: "rk45" (Dormand and Prince, adaptive) or "heun" (second order, even steps of w).
        steps: steps of Heun's method.
        rtol, atol: tolerances of a step of "rk45", relative and absolute, for the root mean square of the waveforms
            and for the integral of the trace per sample.

    Raises:
        UserError: another method, or numbers out of range.
    """

    method: str = "rk45"
    steps: int = 64
    rtol: float = 1e-3
    atol: float = 1e-3

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise UserError(f"method is {self.method!r}, expected one of {', '.join(METHODS)}")
        if not (type(self.steps) is int and 1 <= self.steps <= MAX_EVALUATIONS // 2):
            raise UserError(f"steps is {self.steps!r}, expected a whole number from 1 to {MAX_EVALUATIONS // 2}")
        for tolerance in (self.rtol, self.atol):
            if not (isinstance(tolerance, numbers.Real) and LEAST_TOLERANCE <= tolerance < 1):
                raise UserError(
                    f"rtol is {self.rtol!r} and atol is {self.atol!r}: expected numbers from {LEAST_TOLERANCE:g} to "
                    "below 1"
                )

    def solve(
        self, slope: Callable[[float, Tensor], State], state: State, start: float, stop: float
    ) -> tuple[State, int]:
        """Return the state at ``stop`` and the number of evaluations of ``slope``."""
        if self.method == "heun":
            return _heun(slope, state, start, stop, self.steps), 2 * self.steps
        return _rk45(slope, state, start, stop, self.rtol, self.atol)


class FlowField:
    """The right side of the ODE.

    Args:
        predict: the output of the network as a function of its input (B, C, L) and its timestep ().
        path: noise path of the network.
        probes: probes of Hutchinson, (P, B, C, L); P may be 0.
    """

    def __init__(self, predict: Callable[[Tensor, Tensor], Tensor], path: NoisePath, probes: Tensor) -> None:
        self._predict, self._path, self._probes = predict, path, probes

    def velocity(self, x: Tensor, level: Tensor) -> Tensor:
        """Return v of waveforms x at a noise level ()."""
        timestep = self._path.timestep(level).float().flatten()
        return self._path.velocity(self._predict(self._path.model_input(x, level), timestep), x, level)

    def __call__(self, position: float, x: Tensor) -> State:
        """Return the derivatives of x and of the integral of the trace at ``position`` w."""
        level = torch.tensor(level_at(position), dtype=torch.float64, device=x.device)
        factor = 1 / math.cosh(position)
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            velocity = self.velocity(x, level)
            traces = [
                (torch.autograd.grad(velocity, x, probe, retain_graph=True)[0] * probe).flatten(1).double().sum(dim=1)
                for probe in self._probes
            ]
        return State(factor * velocity.detach(), factor * torch.stack(traces))


def position_of(level: float) -> float:
    """Return w = -arsinh(1 / s) of a noise level s."""
    return -math.asinh(1 / level)


def level_at(position: float) -> float:
    """Return the noise level s of w."""
    return -1 / math.sinh(position)


def _heun(slope: Callable[[float, Tensor], State], state: State, start: float, stop: float, steps: int) -> State:
    size = (stop - start) / steps
    for step in range(steps):
        position = start + step * size
        first = slope(position, state.x)
        second = slope(position + size, state.plus(size, [first], (1.0,)).x)
        state = state.plus(size, [first, second], (0.5, 0.5))
    return state


def _rk45(
    slope: Callable[[float, Tensor], State], state: State, start: float, stop: float, rtol: float, atol: float
) -> tuple[State, int]:
    position, size, evaluations = start, (stop - start) / 32, 1
    first = slope(position, state.x)
    while position < stop:
        size = min(size, stop - position)
        slopes = [first]
        proposed = state
        for node, weights in zip(_NODES[1:], _STAGES[1:], strict=True):
            proposed = state.plus(size, slopes, weights)
            slopes.append(slope(position + node * size, proposed.x))
        evaluations += len(_NODES) - 1
        error = _error(state, proposed, state.plus(size, slopes, _ERROR), rtol, atol)
        if error <= 1:
            # The last stage is the first one of the next step.
            position, state, first = position + size, proposed, slopes[-1]
            position = stop if stop - position < 1e-9 * abs(stop - start) else position
        elif not math.isfinite(error):
            raise UserError(NOT_FINITE)
        elif evaluations > MAX_EVALUATIONS:
            raise UserError(
                f"the ODE was not solved within {evaluations} evaluations: choose larger tolerances rtol and atol, or "
                "the method heun"
            )
        size *= min(max(0.9 * max(error, 1e-10) ** -0.2, 0.2), 5.0)
    return state, evaluations


def _error(before: State, after: State, shifted: State, rtol: float, atol: float) -> float:
    """Return the largest error of a row of the batch in units of its tolerance.

    ``shifted`` is ``before`` plus the estimated error.
    """
    sizes = torch.maximum(_rms(before.x), _rms(after.x))
    errors = _rms(shifted.x - before.x) / (atol + rtol * sizes)
    samples = before.x[0].numel()
    traces = torch.maximum(before.trace.abs(), after.trace.abs()) / samples
    trace_errors = (shifted.trace - before.trace).abs() / samples / (atol + rtol * traces)
    return max(float(errors.max()), float(trace_errors.max()))


def _rms(x: Tensor) -> Tensor:
    return x.double().flatten(1).square().mean(dim=1).sqrt()
