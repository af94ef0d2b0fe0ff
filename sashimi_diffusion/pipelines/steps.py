"""The scheduler in a sampling loop: its timesteps, its step as a function of the prediction, and given latents."""

import inspect
import itertools
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sashimi_diffusion.arguments import short_form
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.pipelines.base import require_count
from sashimi_diffusion.schedulers import DiffWaveScheduler
from sashimi_diffusion.schedulers.compatible import set_few_steps
from sashimi_diffusion.schedulers.levels import check_levels
from sashimi_diffusion.schedulers.noise import draw_noise
from sashimi_diffusion.schedulers.noise_paths import distilled_steps, objective_of, require_objective
from sashimi_diffusion.terminal import one_line

Step = Callable[[Tensor, Tensor, Tensor], Tensor]


def set_timesteps(
    scheduler: Any,
    steps: int | None = None,
    timesteps: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
    model: Mapping[str, Any] | None = None,
) -> Tensor:
    """Set the timesteps of a scheduler and return them, on the CPU, so that no step waits for the device.

    Args:
        scheduler: a scheduler with a discrete training schedule, or one for flow matching or EDM.
        steps: number of sampling steps; None is the default, see :class:`.SashimiPipeline`.
        timesteps: the timesteps themselves, from the noisiest one.
        sigmas: the noise levels themselves, from the noisiest one.
        model: config of the model, whose training objective the scheduler must fit.

    Raises:
        UserError: the scheduler does not fit a pipeline or the model, or cannot have these steps.
    """
    kind, objective = type(scheduler).__name__, objective_of(scheduler)
    # The times of other schedulers in continuous time are not those of any training: the model returns noise.
    if objective is None:
        raise UserError(
            f"{kind} has no discrete training schedule and does not fit this model: "
            "use one of sashimi_diffusion.schedulers.create_scheduler"
        )
    if model is not None:
        require_objective(model, scheduler)
    total = scheduler.config.num_train_timesteps
    if objective != "diffusion" and (timesteps is not None or sigmas is not None):
        given = "sigmas" if timesteps is None else "timesteps"
        raise UserError(f"{kind} takes no {given} in this pipeline: give num_inference_steps")
    distilled = distilled_steps(scheduler.config)
    if timesteps is not None or sigmas is not None:
        _set_custom(scheduler, steps, timesteps, sigmas)
        _require_distilled(distilled, len(scheduler.timesteps))
    else:
        if steps is None and not isinstance(scheduler, DiffWaveScheduler):
            steps = min(50, total) if distilled is None else distilled
        if steps is not None and (isinstance(steps, bool) or not isinstance(steps, numbers.Integral)):
            require_count("num_inference_steps", steps)
        _require_distilled(distilled, steps)
        if steps is not None and not 1 <= steps <= total:
            raise UserError(
                f"cannot sample in {steps} steps: the model was trained with {total}, so ask for 1 to {total}"
            )
        if distilled is None:
            scheduler.set_timesteps(steps, device="cpu")
        else:
            set_few_steps(scheduler, steps or distilled)
    # With trailing spacing, diffusers rounds some numbers of steps (29 of 200) to an extra step at -1.
    if objective == "diffusion" and scheduler.timesteps.min() < 0:
        raise UserError(f"{kind} cannot divide {total} into {steps} steps: ask for another number")
    own_levels = timesteps is None and sigmas is None and distilled is None
    if own_levels and objective == "diffusion":
        check_levels(scheduler)
    # Otherwise diffusers starts at the second step if rounding made the first two timesteps equal.
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    own: Tensor = scheduler.timesteps
    return own


def _require_distilled(distilled: int | None, steps: int | None) -> None:
    """Raise UserError for steps for which the model was not distilled; ``distilled`` is None for other models."""
    if distilled is not None and steps is not None and not 1 <= steps <= distilled:
        advice = "and more do not improve it" if steps > distilled else f"so ask for 1 to {distilled}"
        raise UserError(f"cannot sample in {steps} steps: the model was distilled for at most {distilled}, {advice}")


def _set_custom(
    scheduler: Any, steps: int | None, timesteps: Sequence[int] | None, sigmas: Sequence[float] | None
) -> None:
    """Set timesteps or noise levels that the caller has chosen."""
    if timesteps is not None and sigmas is not None:
        raise UserError("timesteps and sigmas were given: give one of the two")
    kind, total = type(scheduler).__name__, scheduler.config.num_train_timesteps
    name = "sigmas" if timesteps is None else "timesteps"
    if name not in inspect.signature(scheduler.set_timesteps).parameters:
        raise UserError(
            f"{kind} takes no {name}: give num_inference_steps, or use a scheduler of diffusers that takes them"
        )
    if timesteps is not None:
        values = _decreasing(name, timesteps, numbers.Integral, total - 1, f"whole numbers from {total - 1} to 0")
    else:  # the last one is the level of the result
        values = _decreasing(name, sigmas, numbers.Real, math.inf, "at least two numbers from 0 on", at_least=2)
    if steps not in (None, len(values) if timesteps is not None else len(values) - 1):
        raise UserError(f"num_inference_steps is {steps}, {name} has {len(values)}: leave num_inference_steps out")
    try:
        scheduler.set_timesteps(device="cpu", **{name: values})
    except (ValueError, IndexError) as error:  # for example, together with Karras levels
        advice = "create a scheduler that does not choose its noise levels, with from_config(..., NAME=False)"
        raise UserError(f"{kind} cannot use these {name}: {one_line(error)}; {advice}") from error


def _decreasing(
    name: str, given: Any, kind: Any, highest: float, expected: str, at_least: int = 1
) -> list[int] | list[float]:
    """Return numbers of a kind from 0 to ``highest``, each smaller than the one before it, as a list."""
    values: Any = given.tolist() if hasattr(given, "tolist") else given
    fitting = (
        isinstance(values, Sequence)
        and not isinstance(values, str)
        and len(values) >= at_least
        and all(isinstance(one, kind) and not isinstance(one, bool) and 0 <= one <= highest for one in values)
        and all(before > after for before, after in itertools.pairwise(values))
    )
    if not fitting:
        raise UserError(f"{name} is {short_form(given)}: expected {expected}, each smaller than the one before it")
    return list(values)


def scheduler_step(scheduler: Any, generators: list[torch.Generator], eta: float | None = None) -> Step:
    """Return the step of a scheduler as a function of the prediction, the timestep and the noisy waveforms.

    Args:
        scheduler: the scheduler.
        generators: source of its noise, one for each waveform.
        eta: the share of new noise in a step of DDIM, 0 to 1; None leaves it to the scheduler.

    Raises:
        UserError: ``eta`` was given, and the scheduler has none or it is out of range.
    """
    arguments = inspect.signature(scheduler.step).parameters
    options: dict[str, Any] = {}
    if eta is not None:
        if "eta" not in arguments:
            raise UserError(f"{type(scheduler).__name__} has no eta: leave it out, or use the scheduler ddim")
        if isinstance(eta, bool) or not isinstance(eta, numbers.Real) or not 0 <= eta <= 1:
            raise UserError(f"eta is {short_form(eta)}, expected a number from 0 to 1")
        options["eta"] = eta
    # Noise that a scheduler of diffusers draws itself makes it wait for the device.
    takes_noise = "variance_noise" in arguments and "sde" in scheduler.config.get("algorithm_type", "")
    if not takes_noise and "generator" in arguments:
        options["generator"] = generators

    def step(prediction: Tensor, timestep: Tensor, latents: Tensor) -> Tensor:
        if takes_noise:
            options["variance_noise"] = draw_noise(latents.shape, generators, latents.device)
        stepped: Tensor = scheduler.step(prediction, timestep, latents, **options).prev_sample
        return stepped

    return step


def checked_noise(latents: Any, shape: tuple[int, ...]) -> Tensor:
    """Return the noise to start from, float32.

    Raises:
        UserError: it is no tensor of floating-point numbers of this shape.
    """
    found = tuple(latents.shape) if isinstance(latents, Tensor) else type(latents).__name__
    if found != shape or not latents.is_floating_point():
        kind = f" of {latents.dtype}" if isinstance(latents, Tensor) else ""
        raise UserError(f"latents: expected a tensor of floating-point numbers of shape {shape}, got {found}{kind}")
    _require_finite("latents", latents)
    return latents.float()


def replaced_latents(given: Mapping[str, Tensor], returned: Any) -> Tensor:
    """Return the latents after a callback, which may have replaced them.

    Args:
        given: "latents" and "prediction" of the step.
        returned: what the callback has returned: None, or a dictionary. It may have given tensors, as they were.

    Raises:
        UserError: it is something else, or its latents are no tensor of the same shape with finite numbers.
    """
    latents = given["latents"]
    if returned is None:
        return latents
    if not isinstance(returned, Mapping):
        raise UserError(
            f"callback_on_step_end returned {short_form(returned)}: expected None or {{'latents': latents}}"
        )
    for name, value in returned.items():
        if name != "latents" and value is not given.get(name):
            raise UserError(f"callback_on_step_end returned {short_form(name)}: it can replace latents only")
    changed = returned.get("latents", latents)
    if not isinstance(changed, Tensor) or changed.shape != latents.shape:
        found = tuple(changed.shape) if isinstance(changed, Tensor) else type(changed).__name__
        raise UserError(f"callback_on_step_end returned latents of {found}, expected {tuple(latents.shape)}")
    if changed is not latents:
        _require_finite("callback_on_step_end returned latents that", changed)
    return changed.to(latents)


def _require_finite(what: str, latents: Tensor) -> None:
    """Raise UserError if latents have no values, or some that are not finite; ``what`` begins the message."""
    if latents.is_meta:
        raise UserError(f"{what} are on the device meta, which has no values: expected numbers")
    if not latents.isfinite().all():
        raise UserError(f"{what} are not finite (NaN or infinity): expected noise")
