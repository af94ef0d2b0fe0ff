"""Noise paths: what a denoiser gets at a noise level, and what its output means, for every training objective.

The noise level s is the ratio of the deviations of noise and signal. All formulas use waveforms of one scale,

    x = signal · x_0 + deviation · eps,    signal = 1 / sqrt(1 + s^2),    deviation = s / sqrt(1 + s^2),

and the velocity v = signal · eps - deviation · x_0. Three objectives differ in the input of the network, in its
timestep and in its output:

- "diffusion" (a discrete training schedule): the input is x, the timestep is the fractional training step with the
  level s, and the output is eps or v.
- "flow" (rectified flow, arXiv 2209.03003): the time is t = s / (1 + s), the input is (1 - t) x_0 + t eps, the timestep
  is t · num_train_timesteps, and the output is eps - x_0.
- "edm" (arXiv 2206.00364, table 1): the input is (x_0 + s eps) / sqrt(s^2 + sigma_data^2), the timestep is ln(s) / 4,
  and the output is F, of which c_skip (x_0 + s eps) + c_out F is the prediction of x_0. With sigma_data = 1, F is -v.

The timesteps are those of the schedulers of diffusers.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.schedulers.levels import noise_levels

OBJECTIVES = ("diffusion", "flow", "edm")
"""The training objectives of denoisers."""

_CONTINUOUS = {
    "FlowMatchEulerDiscreteScheduler": "flow",
    "FlowMatchHeunDiscreteScheduler": "flow",
    "FlowMatchLCMScheduler": "flow",
    "EDMEulerScheduler": "edm",
    "EDMDPMSolverMultistepScheduler": "edm",
}
_COSINE_OFFSET = 0.008


class Level(NamedTuple):
    """The noisy waveforms a x_0 + s eps.

    Args:
        signal: a.
        noise: s, the standard deviation of the noise.
    """

    signal: Any
    noise: Any

    def of(self, clean: Tensor, noise: Tensor) -> Tensor:
        """Return a x_0 + s eps for x_0 ``clean`` and eps ``noise`` of the same shape."""
        noisy: Tensor = self.signal * clean + self.noise * noise
        return noisy

    def noisier(self, sample: Tensor, target: "Level", noise: Tensor) -> Tensor:
        """Return a sample of this level at a noisier one, the forward process between both; the levels are numbers.

        With r = a' / a, this is r x + sqrt(s'^2 - r^2 s^2) eps (RePaint, arXiv 2201.09865, eq. 1).
        """
        ratio = target.signal / self.signal
        noisier: Tensor = ratio * sample + math.sqrt(max(target.noise**2 - (ratio * self.noise) ** 2, 0.0)) * noise
        return noisier


class NoisePath:
    """Base class of noise paths.

    A level is a tensor that can be broadcast to the waveforms: () or (B, 1, 1).

    Args:
        ladder: noise levels from the smallest to the largest one of the training, float64 (N,).
    """

    def __init__(self, ladder: Tensor) -> None:
        self.ladder = ladder

    @property
    def lowest(self) -> float:
        """The smallest noise level of the training."""
        return float(self.ladder[0])

    @property
    def highest(self) -> float:
        """The largest noise level of the training."""
        return float(self.ladder[-1])

    @property
    def timesteps(self) -> Tensor:
        """The timesteps of the ladder, increasing, (N,)."""
        return self.timestep(self.ladder)

    def to(self, device: torch.device, dtype: torch.dtype) -> "NoisePath":
        """Move the ladder, so that :meth:`level` and ``timesteps`` are on this device, and return the path."""
        self.ladder = self.ladder.to(device, dtype)
        return self

    def timestep(self, level: Tensor) -> Tensor:
        """Return the timestep that the network gets at a noise level, of the same shape."""
        raise NotImplementedError

    def level(self, timesteps: Tensor) -> Tensor:
        """Return the noise level of timesteps of the network, of the same shape; the inverse of :meth:`timestep`."""
        raise NotImplementedError

    def model_input(self, x: Tensor, level: Tensor) -> Tensor:
        """Return the input of the network for waveforms x of the scale of this module."""
        raise NotImplementedError

    def velocity(self, output: Tensor, x: Tensor, level: Tensor) -> Tensor:
        """Return the velocity v of waveforms x from the output of the network."""
        raise NotImplementedError

    def clean(self, output: Tensor, x: Tensor, level: Tensor) -> Tensor:
        """Return the prediction of x_0 in waveforms x from the output of the network."""
        signal, deviation = signal_and_deviation(level)
        return signal * x - deviation * self.velocity(output, x, level)

    def example(self, waveform: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the input and the target of the network for training.

        Args:
            waveform: x_0, (B, C, L).
            noise: eps, (B, C, L).
            timesteps: timesteps of the network, (B,).
        """
        raise NotImplementedError


class DiscretePath(NoisePath):
    """The path of a discrete training schedule, between whose levels the logarithm of the level is interpolated.

    The cosine schedule is used in its continuous form (arXiv 2102.09672, eq. 17). Beyond the ends of the schedule, the
    network gets the timestep of the nearest end.

    Args:
        scheduler: a scheduler with a discrete training schedule.

    Raises:
        UserError: the network predicts something that is neither the noise, the velocity nor the waveform.
    """

    def __init__(self, scheduler: Any) -> None:
        levels = noise_levels(scheduler.alphas_cumprod)
        super().__init__(torch.from_numpy(levels))
        config = scheduler.config
        self._scheduler, self._logs, self._prediction = scheduler, np.log(levels), config.prediction_type
        changed = config.get("trained_betas") is not None or config.get("rescale_betas_zero_snr", False)
        self._cosine = config.get("beta_schedule") == "squaredcos_cap_v2" and not changed
        if self._prediction not in ("epsilon", "v_prediction", "sample"):
            raise UserError(
                f"prediction_type is {self._prediction!r}: expected epsilon, v_prediction or sample for this scheduler"
            )

    @property
    def timesteps(self) -> Tensor:
        """All training steps, int64 (T,)."""
        return torch.arange(len(self.ladder), device=self.ladder.device)

    def timestep(self, level: Tensor) -> Tensor:
        """Return the fractional training step with a noise level, from 0 to T - 1."""
        steps = len(self._logs)
        if not self._cosine:
            found = np.interp(level.double().log().cpu().numpy(), self._logs, np.arange(steps))
            return torch.as_tensor(found).to(level)
        start = math.cos(_COSINE_OFFSET / (1 + _COSINE_OFFSET) * math.pi / 2)
        angle = torch.acos(start / (1 + level.double().square()).sqrt())
        time = angle * 2 / math.pi * (1 + _COSINE_OFFSET) - _COSINE_OFFSET
        return (time * steps - 1).clamp(0, steps - 1).to(level)

    def level(self, timesteps: Tensor) -> Tensor:
        """Return the levels of whole training steps."""
        return self.ladder[timesteps]

    def model_input(self, x: Tensor, level: Tensor) -> Tensor:
        """Return ``x``."""
        return x

    def velocity(self, output: Tensor, x: Tensor, level: Tensor) -> Tensor:
        """Return v from eps, v or x_0."""
        signal, deviation = signal_and_deviation(level)
        if self._prediction == "epsilon":
            return (output - deviation * x) / signal
        return output if self._prediction == "v_prediction" else (signal * x - output) / deviation

    def example(self, waveform: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the noisy waveforms and the noise, the velocity or the waveforms, for integer timesteps."""
        noisy = self._scheduler.add_noise(waveform, noise, timesteps)
        if self._prediction == "v_prediction":
            return noisy, self._scheduler.get_velocity(waveform, noise, timesteps)
        return noisy, noise if self._prediction == "epsilon" else waveform


class FlowPath(NoisePath):
    """The path of rectified flow.

    Args:
        num_train_timesteps: T; the timestep of the time t is t T. The times of the ladder reach from 1 / T to
            1 - 1 / T.
    """

    def __init__(self, num_train_timesteps: int) -> None:
        largest = max(num_train_timesteps - 1, 1)
        super().__init__(even_levels(1 / largest, largest, num_train_timesteps))
        self._steps = num_train_timesteps

    def timestep(self, level: Tensor) -> Tensor:
        """Return t · T."""
        return level / (1 + level) * self._steps

    def level(self, timesteps: Tensor) -> Tensor:
        """Return t / (1 - t)."""
        return timesteps / (self._steps - timesteps)

    def model_input(self, x: Tensor, level: Tensor) -> Tensor:
        """Return (1 - t) x_0 + t eps."""
        return x * ((1 + level.square()).sqrt() / (1 + level))

    def velocity(self, output: Tensor, x: Tensor, level: Tensor) -> Tensor:
        """Return v from eps - x_0."""
        signal, deviation = signal_and_deviation(level)
        time = level / (1 + level)
        scaled = (signal - deviation) * self.model_input(x, level)
        return scaled + (signal * (1 - time) + deviation * time) * output

    def example(self, waveform: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return (1 - t) x_0 + t eps and eps - x_0."""
        time = (timesteps / self._steps).to(waveform.dtype).reshape(-1, 1, 1)
        return (1 - time) * waveform + time * noise, noise - waveform


class EDMPath(NoisePath):
    """The path of EDM.

    Args:
        sigma_min, sigma_max: the smallest and the largest noise level.
        sigma_data: deviation of the waveforms.
        sign: sign of F; the prediction type "v_prediction" of diffusers has the opposite one.
        levels: number of levels of the ladder.
    """

    def __init__(self, sigma_min: float, sigma_max: float, sigma_data: float, sign: float, levels: int) -> None:
        super().__init__(even_levels(sigma_min, sigma_max, levels))
        self._data, self._sign = sigma_data, sign

    def timestep(self, level: Tensor) -> Tensor:
        """Return ln(s) / 4."""
        return level.log() / 4

    def level(self, timesteps: Tensor) -> Tensor:
        """Return exp(4 timestep)."""
        return (4 * timesteps).exp()

    def model_input(self, x: Tensor, level: Tensor) -> Tensor:
        """Return (x_0 + s eps) / sqrt(s^2 + sigma_data^2)."""
        return x * ((1 + level.square()) / (self._data**2 + level.square())).sqrt()

    def velocity(self, output: Tensor, x: Tensor, level: Tensor) -> Tensor:
        """Return v from F."""
        signal, deviation = signal_and_deviation(level)
        power = level.square() + self._data**2
        # c_skip is sigma_data^2 / power. The share of x is 0 for sigma_data = 1.
        share = (signal - self._data**2 / power / signal) / deviation
        return share * x - self._sign * level * self._data / power.sqrt() / deviation * output

    def example(self, waveform: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the scaled noisy waveforms and F, which has the same weight at every level (table 1)."""
        level = (timesteps * 4).exp().to(waveform.dtype).reshape(-1, 1, 1)
        power = level.square() + self._data**2
        noisy = waveform + level * noise
        # (x_0 - c_skip noisy) / c_out, written without the difference of almost equal numbers.
        target = (level * waveform - self._data**2 * noise) / (self._data * power.sqrt())
        return noisy / power.sqrt(), self._sign * target


def distilled_steps(config: Mapping[str, Any]) -> int | None:
    """Return the sampling steps that a model was distilled to, from the config of its scheduler; None for others."""
    steps: int | None = config.get("original_inference_steps")
    return steps


def objective_of(scheduler: Any) -> str | None:
    """Return for which of ``OBJECTIVES`` a scheduler is; None if it fits no denoiser of this package."""
    if hasattr(scheduler, "alphas_cumprod"):
        return "diffusion"
    return next((_CONTINUOUS[one.__name__] for one in type(scheduler).__mro__ if one.__name__ in _CONTINUOUS), None)


def require_objective(config: Mapping[str, Any], scheduler: Any) -> None:
    """Check that a scheduler fits the training objective of a model.

    Args:
        config: config of the model.
        scheduler: the scheduler.

    Raises:
        UserError: it is for another objective, or for none.
    """
    objective, trained = objective_of(scheduler), config.get("objective", "diffusion")
    if objective == trained:
        return
    kind = type(scheduler).__name__
    what = "fits no model of this package" if objective is None else f"is for the training objective {objective}"
    raise UserError(
        f"{kind} {what}, but this model was trained with the objective {trained}: use one of "
        "sashimi_diffusion.schedulers.create_scheduler"
    )


def noise_path(scheduler: Any) -> NoisePath:
    """Return the noise path of the model that a scheduler fits.

    Raises:
        UserError: the scheduler fits no denoiser of this package.
    """
    objective, config = objective_of(scheduler), scheduler.config
    if objective == "diffusion":
        return DiscretePath(scheduler)
    if objective == "flow":
        return FlowPath(config.num_train_timesteps)
    if objective == "edm":
        sign = -1.0 if config.prediction_type == "v_prediction" else 1.0
        return EDMPath(config.sigma_min, config.sigma_max, config.sigma_data, sign, config.num_train_timesteps)
    raise UserError(
        f"{type(scheduler).__name__} fits no model of this package: use one of "
        "sashimi_diffusion.schedulers.create_scheduler"
    )


def signal_and_deviation(level: Tensor) -> Level:
    """Return the factors of signal and noise at a noise level, 1 / sqrt(1 + s^2) and s / sqrt(1 + s^2)."""
    signal = (1 + level.square()).rsqrt()
    return Level(signal, level * signal)


def even_levels(lowest: float, highest: float, count: int) -> Tensor:
    """Return ``count`` noise levels with even steps of arsinh(1 / s), increasing, float64 (count,).

    Where noise is weak, the steps are even in the logarithm of the level; where it is strong, they are longer, because
    little changes there.
    """
    positions = torch.linspace(math.asinh(1 / lowest), math.asinh(1 / highest), count, dtype=torch.float64)
    return 1 / torch.sinh(positions)
