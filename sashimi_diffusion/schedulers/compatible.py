"""Create samplers by name, with settings for raw audio and the training schedule of another scheduler.

The defaults of diffusers do not suit audio of unit variance and a schedule of 200 steps: ``linspace`` spacing visits
one level twice with all steps (0/0 in the multistep solvers), ``leading`` spacing skips the noisiest level,
``clip_sample`` clips to [-1, 1], and a last alpha smaller than one leaves hiss.
"""

from collections.abc import Mapping
from typing import Any

import diffusers
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.schedulers.diffwave import FAST_BETAS_50, FAST_BETAS_200, DiffWaveScheduler
from sashimi_diffusion.schedulers.linear_multistep import LinearMultistepScheduler
from sashimi_diffusion.suggestions import did_you_mean

_TRAILING = {"timestep_spacing": "trailing"}
_KARRAS = {"use_karras_sigmas": True}
_DPM = {**_TRAILING, "final_sigmas_type": "zero"}

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "diffwave": ("DiffWaveScheduler", {}),
    "diffwave-fast": ("DiffWaveScheduler", {}),
    "ddpm": ("DDPMScheduler", {**_TRAILING, "clip_sample": False, "variance_type": "fixed_small"}),
    "ddim": ("DDIMScheduler", {**_TRAILING, "clip_sample": False, "set_alpha_to_one": True}),
    "pndm": ("PNDMScheduler", {**_TRAILING, "skip_prk_steps": True, "set_alpha_to_one": True}),
    "ipndm": ("LinearMultistepScheduler", {}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", _DPM),
    "dpmsolver++-karras": ("DPMSolverMultistepScheduler", {**_DPM, **_KARRAS}),
    "dpmsolver++-3m": ("DPMSolverMultistepScheduler", {**_DPM, "solver_order": 3}),
    "dpmsolver++-3m-karras": ("DPMSolverMultistepScheduler", {**_DPM, **_KARRAS, "solver_order": 3}),
    "dpmsolver++-sde": ("DPMSolverMultistepScheduler", {**_DPM, "algorithm_type": "sde-dpmsolver++"}),
    "dpmsolver++-sde-karras": ("DPMSolverMultistepScheduler", {**_DPM, **_KARRAS, "algorithm_type": "sde-dpmsolver++"}),
    # This class has no trailing spacing; Karras levels never coincide.
    "dpmsolver++-singlestep": ("DPMSolverSinglestepScheduler", {**_KARRAS, "lower_order_final": True}),
    "deis": ("DEISMultistepScheduler", _TRAILING),
    "unipc": ("UniPCMultistepScheduler", _DPM),
    "unipc-karras": ("UniPCMultistepScheduler", {**_DPM, **_KARRAS}),
    "sasolver": ("SASolverScheduler", _TRAILING),
    "euler": ("EulerDiscreteScheduler", _DPM),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", _TRAILING),
    "heun": ("HeunDiscreteScheduler", _TRAILING),
    "kdpm2": ("KDPM2DiscreteScheduler", _TRAILING),
    "lms": ("LMSDiscreteScheduler", _TRAILING),
}
"""Name -> (name of the class, settings)."""

_SCHEDULE_KEYS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")


def create_scheduler(name: str, config: Mapping[str, Any]) -> SchedulerMixin:
    """Create a scheduler with the training schedule of another scheduler.

    Args:
        name: one of ``SCHEDULERS``.
        config: config of the scheduler that belongs to the model (``pipe.scheduler.config``).

    Raises:
        UserError: the name is unknown, or the scheduler needs a package that is not installed.
    """
    if name not in SCHEDULERS:
        hint = did_you_mean(name, SCHEDULERS)
        raise UserError(f"unknown scheduler {name!r}{hint} (known: {', '.join(SCHEDULERS)})")
    class_name, settings = SCHEDULERS[name]
    schedule = {key: config[key] for key in _SCHEDULE_KEYS if key in config}
    if name == "diffwave-fast":
        schedule["inference_betas"] = list(_fast_betas(DiffWaveScheduler(**schedule)))
    own = {"DiffWaveScheduler": DiffWaveScheduler, "LinearMultistepScheduler": LinearMultistepScheduler}
    scheduler_class = own.get(class_name) or getattr(diffusers, class_name)
    try:
        return scheduler_class(**schedule, **settings)
    except ImportError as error:
        raise UserError(f"the scheduler {name!r} needs the package scipy: pip install scipy") from error


def _fast_betas(trained: DiffWaveScheduler) -> tuple[float, ...]:
    """Return the fast betas whose noisiest level is within the training schedule of the model."""
    remaining = 1.0
    for beta in FAST_BETAS_200:
        remaining *= 1 - beta
    return FAST_BETAS_200 if remaining >= trained.alphas_cumprod[-1] else FAST_BETAS_50
