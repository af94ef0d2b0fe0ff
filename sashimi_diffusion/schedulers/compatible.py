"""Create samplers by name, with settings for raw audio and the training schedule of another scheduler.

The defaults of diffusers fail for audio of unit variance and a schedule of 200 steps: ``linspace`` spacing with 200
sampling steps visits one level twice (0/0 in the multistep solvers), ``leading`` spacing skips the noisiest level,
``clip_sample`` clips to [-1, 1], and a final alpha smaller than one leaves noise in the audio.

A cosine schedule ends at a noise level of about 4000. With few steps, evenly spaced timesteps fall from there to 13 and
end far above zero: ``heun`` then amplifies its error (audio of three times full scale), and most others lose all quiet
parts. Samplers that can choose their noise levels therefore visit levels between those of the first training step and
``MAX_NOISE``, spaced as in arXiv 2206.00364 (Karras) or with a constant ratio (exponential).
"""

from collections.abc import Mapping
from typing import Any

import diffusers
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from sashimi_diffusion.arguments import Range
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.schedulers.diffwave import (
    FAST_BETAS_50,
    FAST_BETAS_200,
    MAX_TRAIN_TIMESTEPS,
    DiffWaveScheduler,
)
from sashimi_diffusion.schedulers.levels import noise_levels
from sashimi_diffusion.schedulers.linear_multistep import LinearMultistepScheduler
from sashimi_diffusion.schedulers.noise_paths import distilled_steps, objective_of
from sashimi_diffusion.suggestions import did_you_mean
from sashimi_diffusion.terminal import counted

_TRAILING = {"timestep_spacing": "trailing"}
_KARRAS = {"use_karras_sigmas": True}
_EXPONENTIAL = {"use_exponential_sigmas": True}
_DPM = {**_TRAILING, "final_sigmas_type": "zero"}
# Classes with levels of their own start with the right deviation, sqrt(1 + sigma^2), only for the spacing "leading".
_LEADING = {"timestep_spacing": "leading"}

MAX_NOISE = 30.0
"""Largest noise level of samplers that choose their levels: the ratio of the deviations of noise and signal."""

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "diffwave": ("DiffWaveScheduler", {}),
    "diffwave-fast": ("DiffWaveScheduler", {}),
    "ddpm": ("DDPMScheduler", {**_TRAILING, "clip_sample": False, "variance_type": "fixed_small"}),
    "ddim": ("DDIMScheduler", {**_TRAILING, "clip_sample": False, "set_alpha_to_one": True}),
    "pndm": ("PNDMScheduler", {**_TRAILING, "skip_prk_steps": True, "set_alpha_to_one": True}),
    "ipndm": ("LinearMultistepScheduler", {}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {**_DPM, **_EXPONENTIAL}),
    "dpmsolver++-karras": ("DPMSolverMultistepScheduler", {**_DPM, **_KARRAS}),
    "dpmsolver++-3m": ("DPMSolverMultistepScheduler", {**_DPM, **_EXPONENTIAL, "solver_order": 3}),
    "dpmsolver++-3m-karras": ("DPMSolverMultistepScheduler", {**_DPM, **_KARRAS, "solver_order": 3}),
    "dpmsolver++-sde": (
        "DPMSolverMultistepScheduler",
        {**_DPM, **_EXPONENTIAL, "algorithm_type": "sde-dpmsolver++"},
    ),
    "dpmsolver++-sde-karras": ("DPMSolverMultistepScheduler", {**_DPM, **_KARRAS, "algorithm_type": "sde-dpmsolver++"}),
    "dpmsolver++-singlestep": ("DPMSolverSinglestepScheduler", {**_KARRAS, "lower_order_final": True}),
    "deis": ("DEISMultistepScheduler", {**_TRAILING, **_KARRAS}),
    "unipc": ("UniPCMultistepScheduler", {**_DPM, **_EXPONENTIAL}),
    "unipc-karras": ("UniPCMultistepScheduler", {**_DPM, **_KARRAS}),
    "sasolver": ("SASolverScheduler", _TRAILING),
    "euler": ("EulerDiscreteScheduler", {**_LEADING, **_KARRAS, "final_sigmas_type": "zero"}),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", _TRAILING),
    "heun": ("HeunDiscreteScheduler", {**_LEADING, **_KARRAS}),
    "kdpm2": ("KDPM2DiscreteScheduler", {**_LEADING, **_KARRAS}),
    # The Karras levels of this class have no limits.
    "lms": ("LMSDiscreteScheduler", {**_LEADING, **_EXPONENTIAL}),
}
"""Name of the sampler -> (name of its class, settings of the class)."""

FLOW_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "flow-euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow-heun": ("FlowMatchHeunDiscreteScheduler", {}),
}
"""The same for models that were trained by flow matching."""

EDM_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "edm-euler": ("EDMEulerScheduler", {}),
    "edm-dpmsolver++": ("EDMDPMSolverMultistepScheduler", {}),
}
"""The same for models with EDM preconditioning."""

ALL_SCHEDULERS = {**SCHEDULERS, **FLOW_SCHEDULERS, **EDM_SCHEDULERS}
"""The samplers of all training objectives."""

CONTINUOUS_RANGES = {
    "num_train_timesteps": Range(1, MAX_TRAIN_TIMESTEPS),
    "shift": Range(1e-3, 1e3),
    "sigma_min": Range(1e-6, 1e3),
    "sigma_max": Range(1e-6, 1e6),
    "sigma_data": Range(1e-6, 1e6),
    "rho": Range(1e-3, 1e3),
}
"""Ranges of the arguments of schedulers without a discrete training schedule."""

_CONTINUOUS_KEYS = {
    "flow": ("num_train_timesteps", "shift"),
    "edm": ("num_train_timesteps", "sigma_min", "sigma_max", "sigma_data", "sigma_schedule", "rho", "prediction_type"),
}

SCHEDULE_KEYS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")
"""Arguments of the training schedule; most schedulers of diffusers have them, too."""


def create_scheduler(name: str, config: Mapping[str, Any]) -> SchedulerMixin:
    """Create a scheduler with the training schedule of another scheduler.

    Steps of these schedulers do not wait for a CUDA device if their timesteps are on the CPU and ``set_begin_index``
    was called, as in :class:`~sashimi_diffusion.pipelines.SashimiPipeline`. Five do wait, in code of diffusers:
    ``ddpm``, ``sasolver`` and ``euler-ancestral`` copy their noise to the device in each step, ``unipc`` and
    ``unipc-karras`` their noise levels.

    Args:
        name: one of ``SCHEDULERS``; of ``FLOW_SCHEDULERS`` or ``EDM_SCHEDULERS`` for models of these objectives.
        config: config of the scheduler that belongs to the model (``pipe.scheduler.config``).

    Returns:
        a scheduler of this package or of diffusers.

    Raises:
        UserError: the name is unknown, the scheduler does not fit the training objective of the model, or it needs a
            package that is not installed.
    """
    fitting = fitting_schedulers(config)
    if name not in ALL_SCHEDULERS:
        hint = did_you_mean(name, fitting)
        raise UserError(f"unknown scheduler {name!r}{hint} (known: {', '.join(fitting)})")
    if (steps := distilled_steps(config)) is not None:
        raise UserError(
            f"the scheduler {name} does not fit a model that was distilled to "
            f"{counted(steps, 'step')}: leave the scheduler out, or use the teacher"
        )
    if name not in fitting:
        raise UserError(
            f"the scheduler {name} does not fit a model with the training objective {_objective(config)}: choose one "
            f"of {', '.join(fitting)}"
        )
    if fitting is not SCHEDULERS:
        return getattr(diffusers, fitting[name][0])(**_continuous(config))
    class_name, settings = SCHEDULERS[name]
    schedule = _schedule(config)
    if name == "diffwave-fast":
        schedule["inference_betas"] = list(_fast_betas(DiffWaveScheduler(**schedule)))
    own = {"DiffWaveScheduler": DiffWaveScheduler, "LinearMultistepScheduler": LinearMultistepScheduler}
    scheduler_class = own.get(class_name) or getattr(diffusers, class_name)
    try:
        scheduler = scheduler_class(**schedule, **settings)
    except ImportError as error:
        raise UserError(f"the scheduler {name!r} needs the package scipy: pip install scipy") from error
    if _KARRAS.items() <= settings.items() or _EXPONENTIAL.items() <= settings.items():
        noise = noise_levels(scheduler.alphas_cumprod)
        # Most classes have no argument for these limits, but all read them in their config.
        scheduler.register_to_config(sigma_min=float(noise[0]), sigma_max=min(float(noise[-1]), MAX_NOISE))
    return scheduler


def create_few_step_scheduler(config: Mapping[str, Any], steps: int) -> Any:
    """Return the scheduler of a model that was distilled for a number of steps, which is in its config.

    It estimates clean audio, adds less noise, and estimates again (arXiv 2303.01469, algorithm 1): ``LCMScheduler``,
    ``FlowMatchLCMScheduler``, or for EDM the stochastic solver of first order. That one keeps a small part of the
    earlier noise, the square of the ratio of the two levels.

    Args:
        config: config of the scheduler of the teacher.
        steps: the largest number of sampling steps, and the default of the pipeline.
    """
    objective = _objective(config)
    scheduler: Any
    if objective == "diffusion":
        return diffusers.LCMScheduler(**_schedule(config), original_inference_steps=steps, clip_sample=False)
    if objective == "flow":
        scheduler = diffusers.FlowMatchLCMScheduler(**_continuous(config))
    else:
        # Between these levels, Karras's spacing of few steps visits none that hardly differs from noise or from audio.
        levels = {"sigma_min": max(1 / steps, config["sigma_min"]), "sigma_max": min(MAX_NOISE, config["sigma_max"])}
        solver = {"algorithm_type": "sde-dpmsolver++", "solver_order": 1, "sigma_schedule": "karras"}
        scheduler = diffusers.EDMDPMSolverMultistepScheduler(**{**_continuous(config), **levels, **solver})
    scheduler.register_to_config(original_inference_steps=steps)
    return scheduler


def set_few_steps(scheduler: Any, steps: int) -> None:
    """Set the timesteps of a scheduler of :func:`create_few_step_scheduler`, on the CPU.

    Flow matching begins at the noisiest time of the training, because pure noise contains no audio, and goes on in even
    steps of time.
    """
    if objective_of(scheduler) == "flow":
        shortest = 1 / scheduler.config.num_train_timesteps
        scheduler.set_timesteps(sigmas=[1 - max(step / steps, shortest) for step in range(steps)], device="cpu")
    else:
        scheduler.set_timesteps(steps, device="cpu")


def fitting_schedulers(config: Mapping[str, Any]) -> dict[str, tuple[str, dict[str, Any]]]:
    """Return the samplers that fit the training objective of a model, of ``ALL_SCHEDULERS``.

    Args:
        config: config of the scheduler that belongs to the model.
    """
    return {"diffusion": SCHEDULERS, "flow": FLOW_SCHEDULERS, "edm": EDM_SCHEDULERS}[_objective(config)]


def _objective(config: Mapping[str, Any]) -> str:
    if "sigma_data" in config:
        return "edm"
    return "flow" if "shift" in config and "beta_start" not in config else "diffusion"


def _continuous(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a scheduler without a discrete training schedule."""
    return {key: config[key] for key in _CONTINUOUS_KEYS[_objective(config)] if key in config}


def _schedule(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that describe a discrete training schedule, for every class of scheduler."""
    schedule = {key: config[key] for key in SCHEDULE_KEYS if key in config}
    if config.get("rescale_betas_zero_snr"):  # most classes of diffusers have no such argument
        schedule["trained_betas"] = DiffWaveScheduler(**schedule, rescale_betas_zero_snr=True).betas.tolist()
    return schedule


def _fast_betas(trained: DiffWaveScheduler) -> tuple[float, ...]:
    """Return FAST_BETAS_200 if its noisiest level is in the training schedule, otherwise FAST_BETAS_50."""
    remaining = 1.0
    for beta in FAST_BETAS_200:
        remaining *= 1 - beta
    return FAST_BETAS_200 if remaining >= trained.alphas_cumprod[-1] else FAST_BETAS_50
