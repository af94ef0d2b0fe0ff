"""The noise levels that a scheduler visits, and whether they suit the model: :func:`check_levels`.

A noise level is the ratio of the deviations of noise and signal, sqrt((1 - abar) / abar), where the signal has unit
variance. The last step goes from the last level to clean audio at once, which loses all parts of the signal that are
quieter than the noise of that level.
"""

import copy
import warnings
from typing import Any

import numpy as np
import torch

from sashimi_diffusion.errors import UserError

LAST_LEVEL = 1 / 8
"""Largest last noise level without a warning; audio of the bundled pipeline is then less than 3 dB too quiet."""

LARGEST_RATIO = 14.0
"""Largest ratio of neighboring noise levels without a warning."""

_ONLY_NOISE = 10.0  # above this level, the model sees nothing of the signal


def noise_levels(alphas_cumprod: torch.Tensor) -> np.ndarray:
    """Return the noise level of each training step, increasing, float64 (T,)."""
    signal = alphas_cumprod.double().cpu().numpy()
    return np.sqrt((1 - signal) / signal)


def visited_levels(scheduler: Any) -> np.ndarray:
    """Return the noise levels of the timesteps of a scheduler, in the order of sampling, float64 (S,)."""
    trained = noise_levels(scheduler.alphas_cumprod)
    timesteps = scheduler.timesteps.double().cpu().numpy()
    return np.exp(np.interp(timesteps, np.arange(len(trained)), np.log(trained)))


def check_levels(scheduler: Any) -> None:
    """Check the noise levels that a scheduler visits after ``set_timesteps``.

    A warning says that there are too few steps, and names the smallest sensible number: the last step starts above
    ``LAST_LEVEL``, or neighboring levels are further apart than ``LARGEST_RATIO``. The audio is then too quiet or
    distorted. All steps of the training schedule are never too few.

    Args:
        scheduler: a scheduler with a discrete training schedule.

    Raises:
        UserError: sampling would start far below the noisiest level of the training, so that the audio would be almost
            silent.
    """
    levels, trained = visited_levels(scheduler), noise_levels(scheduler.alphas_cumprod)
    name, total = type(scheduler).__name__, len(trained)
    if levels[0] < min(trained[-1], _ONLY_NOISE) / 2:
        raise UserError(
            f"the levels of this {name} start at a noise of {levels[0]:.2g}, but the model was trained up to "
            f"{trained[-1]:.2g}, so the audio would be almost silent: choose another scheduler, such as unipc-karras"
        )
    steps = scheduler.num_inference_steps
    if steps < total and _coarse(levels):
        too_few = "1 step is too few" if steps == 1 else f"{steps} steps are too few"
        # One place in the code: Python shows each text once.
        warnings.warn(
            f"{too_few} for {name}, the audio will be too quiet or distorted: {_advice(scheduler, steps, total)}",
            stacklevel=1,
        )


def _advice(scheduler: Any, steps: int, total: int) -> str:
    """Return what to do about too few steps."""
    other = "a scheduler that needs fewer, such as unipc-karras"
    if scheduler.config.get("inference_betas") is not None:  # the number of steps is fixed
        return f"use {other}"
    trial, enough = copy.deepcopy(scheduler), steps
    while enough < total:
        enough += 1
        trial.set_timesteps(enough)
        if trial.timesteps.min() >= 0 and not _coarse(visited_levels(trial)):
            break
    return f"take at least {enough}" + (f", or {other}" if enough > 6 else "")


def _coarse(levels: np.ndarray) -> bool:
    heard = np.minimum(levels, _ONLY_NOISE)
    return bool(levels[-1] > LAST_LEVEL or (heard[:-1] / heard[1:] > LARGEST_RATIO).any())
