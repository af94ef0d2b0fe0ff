"""DiffWave's reverse process (arXiv 2009.09761) with the scheduler interface of diffusers.

With the T training betas beta_t, alpha_t = 1 - beta_t and abar_t = alpha_0 ... alpha_t. The noisy sample at diffusion
step t is x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps. One reverse step (algorithm 2 of the paper) is

    x_{t-1} = (x_t - (1 - alpha_t) / sqrt(1 - abar_t) eps) / sqrt(alpha_t) + sigma_t z
    sigma_t^2 = beta_t (1 - abar_{t-1}) / (1 - abar_t),    z ~ N(0, I), and no noise after the last step.

Samples are not clipped. With fewer sampling steps than T, the same update runs on a subsequence of the noise levels.
"""

import math
from itertools import accumulate
from operator import mul
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin, SchedulerOutput

from sashimi_diffusion.arguments import Range, check_arguments, short_form
from sashimi_diffusion.bundled import BundledByName
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.schedulers.noise import Generators, draw_noise

FAST_BETAS_200 = (1e-4, 1e-3, 0.01, 0.05, 0.2, 0.7)
"""Six inference betas for a model trained with T = 200 (DiffWave, section 4: the LARGE model's fast sampling)."""

FAST_BETAS_50 = (1e-4, 1e-3, 0.01, 0.05, 0.2, 0.5)
"""Six inference betas for a model trained with T = 50 (DiffWave, section 4: the BASE model's fast sampling)."""

LEAST_SIGNAL = 2.0**-24
"""abar of the last level of a schedule that ends in pure noise."""

MAX_TRAIN_TIMESTEPS = 100_000
_BETA = Range(0.0, 1.0, items=MAX_TRAIN_TIMESTEPS)
RANGES = {
    "num_train_timesteps": Range(1, MAX_TRAIN_TIMESTEPS),
    "beta_start": _BETA,
    "beta_end": _BETA,
    "trained_betas": _BETA,
    "inference_betas": _BETA,
}
"""Ranges of the arguments of schedulers by name."""


class DiffWaveScheduler(BundledByName, SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # the mixins disagree about config_name
    """Scheduler of ancestral sampling with DiffWave's noise schedule.

    A new scheduler visits all noise levels; :meth:`set_timesteps` selects fewer.

    Args:
        num_train_timesteps: T, the number of noise levels the model was trained with.
        beta_start: first beta of the linear schedule.
        beta_end: last beta of the linear schedule.
        beta_schedule: ``"linear"``, or ``"squaredcos_cap_v2"`` (the cosine schedule of arXiv 2102.09672, eq. 17).
        trained_betas: T betas that replace the schedule.
        prediction_type: what the model predicts, ``"epsilon"`` or ``"v_prediction"`` (arXiv 2202.00512).
        inference_betas: betas of DiffWave's fast sampling (appendix B), least noisy first. The timestep of each is the
            fractional training step with the same noise level; levels outside the training schedule are clamped to its
            nearest end.
        timestep_spacing: always ``"trailing"``: the noisiest level is visited for every number of steps. The argument
            exists, like ``clip_sample``, for diffusers schedulers that are created from this config, because their
            defaults skip the noisiest level or clip to [-1, 1].
        clip_sample: always ``False``.
        rescale_betas_zero_snr: scale the schedule so that its last level is pure noise (arXiv 2305.08891), see
            :func:`zero_terminal_snr`. It needs ``"v_prediction"``, because there is no information in the noise of a
            sample that is only noise.

    Raises:
        UserError: a value has another type or is not supported, a beta is not between 0 and 1, or ``trained_betas``
            does not have T values.
    """

    _compatibles = [scheduler.name for scheduler in KarrasDiffusionSchedulers]  # noqa: RUF012  # as in diffusers
    order = 1
    init_noise_sigma = 1.0
    config: Any  # diffusers' FrozenDict, whose keys are also attributes

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 200,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        prediction_type: str = "epsilon",
        inference_betas: list[float] | None = None,
        timestep_spacing: str = "trailing",
        clip_sample: bool = False,
        rescale_betas_zero_snr: bool = False,
    ) -> None:
        # When another class is created from this config, diffusers drops values that are defaults here, and the
        # defaults of the other class (1000 steps, clipping) would replace them.
        self.register_to_config(_use_default_values=[])
        check_arguments(DiffWaveScheduler.__init__, self.config, RANGES)
        _require("prediction_type", prediction_type, ("epsilon", "v_prediction"))
        _require("timestep_spacing", timestep_spacing, ("trailing",))
        _require("clip_sample", clip_sample, (False,))

        if inference_betas is not None:
            _checked_betas("inference_betas", inference_betas)
        if trained_betas is not None:
            self.betas = _checked_betas("trained_betas", trained_betas)
            if len(self.betas) != num_train_timesteps:
                raise UserError(
                    f"trained_betas has {len(self.betas)} values, num_train_timesteps is {num_train_timesteps}"
                )
        else:
            _require("beta_schedule", beta_schedule, ("linear", "squaredcos_cap_v2"))
            linear = beta_schedule == "linear"
            betas = (
                torch.linspace(beta_start, beta_end, num_train_timesteps)
                if linear
                else cosine_betas(num_train_timesteps)
            )
            self.betas = _checked_betas("beta_start .. beta_end", betas)
        if rescale_betas_zero_snr:
            if prediction_type != "v_prediction":
                raise UserError(
                    f"rescale_betas_zero_snr needs prediction_type='v_prediction', not {prediction_type!r}: pure noise "
                    "says nothing about the waveform"
                )
            self.betas = _checked_betas("rescaled betas", zero_terminal_snr(self.betas))
        self.alphas = 1.0 - self.betas
        self.alphas_cumprod = _running_product(self.alphas)
        self._device_copies: tuple[torch.Tensor, dict[torch.device, torch.Tensor]] = (self.alphas_cumprod, {})
        self.set_timesteps()

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    def set_timesteps(self, num_inference_steps: int | None = None, device: str | torch.device | None = None) -> None:
        """Set the noise levels that sampling visits.

        Args:
            num_inference_steps: number of sampling steps, 1 to T. None: T, or the number of ``inference_betas``.
            device: device of ``timesteps``.

        Raises:
            UserError: the number of steps is not from 1 to T, or not the number of ``inference_betas``.
        """
        fast = self.config.inference_betas
        total = self.config.num_train_timesteps
        steps = num_inference_steps if num_inference_steps is not None else len(fast or self.betas)
        if fast is not None and steps != len(fast):
            raise UserError(f"this fast schedule has {len(fast)} steps, not {steps}: leave the number of steps out")
        if not 1 <= steps <= total:
            raise UserError(
                f"cannot sample in {steps} steps: the model was trained with {total}, so ask for 1 to {total}"
            )

        if fast is not None:
            alphas = 1.0 - _checked_betas("inference_betas", fast)
            cumulative = _running_product(alphas)
            timesteps = self.align(cumulative)
        else:
            # Trailing: T, T - T/S, ..., T/S, rounded; then indices from 0.
            indices = torch.tensor([round(total - i * total / steps) - 1 for i in reversed(range(steps))])
            alphas = torch.stack([segment.prod() for segment in self.alphas.tensor_split(indices[:-1] + 1)])
            cumulative = self.alphas_cumprod[indices]
            timesteps = indices

        previous = torch.cat([torch.ones(1), cumulative[:-1]])
        self._alphas = alphas.tolist()
        self._cumulative = cumulative.tolist()
        self._sigmas = ((1 - alphas) * (1 - previous) / (1 - cumulative)).sqrt().tolist()
        self._visited = timesteps.tolist()
        self.num_inference_steps = steps
        self.timesteps = timesteps.flip(0).to(device)

    def align(self, alphas_cumprod: torch.Tensor) -> torch.Tensor:
        """Return the fractional training steps that have the given noise levels (DiffWave, appendix B).

        Between training steps, sqrt(abar) is interpolated linearly.

        Args:
            alphas_cumprod: abar of each level, decreasing, shape (S,).

        Returns:
            Steps in [0, T - 1], float32, shape (S,).
        """
        trained = self.alphas_cumprod.sqrt()  # (T,), decreasing
        wanted = alphas_cumprod.sqrt().clamp(trained[-1], trained[0])  # (S,)
        above = torch.searchsorted(-trained, -wanted).clamp(1, len(trained) - 1)
        fraction = (trained[above - 1] - wanted) / (trained[above - 1] - trained[above])
        return above - 1 + fraction

    def scale_model_input(self, sample: torch.Tensor, timestep: float | torch.Tensor | None = None) -> torch.Tensor:
        """Return ``sample``; the model input is not scaled."""
        return sample

    def step(
        self,
        model_output: torch.Tensor,
        timestep: float | torch.Tensor,
        sample: torch.Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """Run one reverse step, from the noise level of ``timestep`` to the next lower level.

        Args:
            model_output: epsilon or v, shape (B, C, L).
            timestep: one of ``timesteps``. The step waits for the device of a tensor that is not on the CPU.
            sample: x_t, shape (B, C, L).
            generator: source of the noise z: one generator, or one per sample.
            return_dict: return a ``SchedulerOutput`` instead of a tuple.

        Returns:
            ``prev_sample``, the sample at the next lower level; after the last step, the generated x_0.

        Raises:
            ValueError: ``timestep`` is not one of ``timesteps``.
        """
        index = self._index(timestep)
        alpha, cumulative, sigma = self._alphas[index], self._cumulative[index], self._sigmas[index]
        epsilon = model_output
        if self.config.prediction_type == "v_prediction":
            epsilon = math.sqrt(cumulative) * model_output + math.sqrt(1 - cumulative) * sample
        previous = (sample - (1 - alpha) / math.sqrt(1 - cumulative) * epsilon) / math.sqrt(alpha)
        if index > 0:
            previous = previous + sigma * draw_noise(sample.shape, generator, sample.device, sample.dtype)
        return SchedulerOutput(prev_sample=previous) if return_dict else (previous,)

    def add_noise(self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps for x_0 and eps (B, C, L) and integer t (B,)."""
        signal, deviation = self._signal_and_noise(original_samples, timesteps)
        return signal * original_samples + deviation * noise

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Return v_t = sqrt(abar_t) eps - sqrt(1 - abar_t) x_0 for x_0 and eps (B, C, L) and integer t (B,)."""
        signal, deviation = self._signal_and_noise(sample, timesteps)
        return signal * noise - deviation * sample

    def noise_levels(self, timesteps: torch.Tensor) -> torch.Tensor:
        """Return abar_t of integer t (B,) on their device, float32 (B,).

        ``alphas_cumprod`` is copied to a device once, not for every batch.
        """
        source, copies = self._device_copies
        if source is not self.alphas_cumprod:
            self._device_copies = source, copies = self.alphas_cumprod, {}
        if timesteps.device not in copies:
            copies[timesteps.device] = source.to(timesteps.device)
        return copies[timesteps.device][timesteps]

    def _signal_and_noise(self, sample: torch.Tensor, timesteps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cumulative = self.noise_levels(timesteps.to(sample.device)).to(sample.dtype)
        cumulative = cumulative.reshape(-1, *[1] * (sample.ndim - 1))  # (B, 1, 1)
        return cumulative.sqrt(), (1 - cumulative).sqrt()

    def _index(self, timestep: float | torch.Tensor) -> int:
        wanted = float(timestep)
        index = min(range(len(self._visited)), key=lambda i: abs(self._visited[i] - wanted))
        if abs(self._visited[index] - wanted) > 1e-3:
            raise ValueError(f"timestep {wanted:g} is not one of the scheduler's timesteps {self.timesteps.tolist()}")
        return index


def cosine_betas(steps: int) -> torch.Tensor:
    """Return the cosine schedule (arXiv 2102.09672, eq. 17 with s = 0.008), clamped to 0.999, float32, (steps,)."""
    times = torch.arange(steps + 1, dtype=torch.float64) / steps
    cumulative = torch.cos((times + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - cumulative[1:] / cumulative[:-1]).clamp(max=0.999).float()


def zero_terminal_snr(betas: torch.Tensor) -> torch.Tensor:
    """Return betas whose last level is pure noise (arXiv 2305.08891, algorithm 1), float32 (steps,).

    sqrt(abar) is shifted and scaled so that the first level stays and the last one is 0. There, abar is 2^-24 (-72 dB),
    as in diffusers, so that all formulas stay finite.

    Raises:
        UserError: there is only one level.
    """
    if len(betas) < 2:
        raise UserError("a schedule of one timestep cannot end in pure noise: use at least two timesteps")
    signal = torch.cumprod(1 - betas.double(), dim=0).sqrt()
    cumulative = ((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])).square()
    cumulative[-1] = LEAST_SIGNAL
    return (1 - cumulative / torch.cat([torch.ones(1), cumulative[:-1]])).float()


def _running_product(values: torch.Tensor) -> torch.Tensor:
    # float32 products, like those with which the published models were trained; torch.cumprod accumulates in float64.
    return torch.stack(list(accumulate(values, mul)))


def _checked_betas(name: str, betas: torch.Tensor | list[float]) -> torch.Tensor:
    betas = torch.as_tensor(betas, dtype=torch.float32)
    if betas.ndim != 1 or len(betas) == 0 or not bool(((betas > 0) & (betas < 1)).all()):
        raise UserError(f"{name}: expected at least one number, each between 0 and 1")
    return betas


def _require(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{name} is {short_form(value)}, expected {' or '.join(map(repr, allowed))}")
