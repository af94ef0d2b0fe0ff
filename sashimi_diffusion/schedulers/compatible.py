"""Create samplers by name, with settings for raw audio and the training schedule of another scheduler.

The defaults of diffusers fail for audio of unit variance and a schedule of 200 steps: ``linspace`` spacing with 200
sampling steps visits one level twice (0/0 in the multistep solvers), ``leading`` spacing skips the noisiest level,
``clip_sample`` clips to [-1, 1], and a final alpha smaller than one leaves noise in the audio.
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
    # This class has no trailing spacing. Karras levels avoid the spacing "linspace", which visits one level twice.
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
"""Name of the sampler -> (name of its class, settings of the class)."""

SCHEDULE_KEYS = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")
"""Arguments of the training schedule; most schedulers of diffusers have them, too."""


def create_scheduler(name: str, config: Mapping[str, Any]) -> SchedulerMixin:
    """Create a scheduler with the training schedule of another scheduler.

    Steps of these schedulers do not wait for a CUDA device if their timesteps are on the CPU and ``set_begin_index``
    was called, as in :class:`~sashimi_diffusion.pipelines.SashimiPipeline`. Five do wait, in code of diffusers:
    ``ddpm``, ``sasolver`` and ``euler-ancestral`` copy their noise to the device in each step, ``unipc`` and
    ``unipc-karras`` their noise levels.

    Args:
        name: one of ``SCHEDULERS``.
        config: config of the scheduler that belongs to the model (``pipe.scheduler.config``).

    Returns:
        a scheduler of this package or of diffusers.

    Raises:
        UserError: the name is unknown, or the scheduler needs a package that is not installed.
    """
    if name not in SCHEDULERS:
        hint = did_you_mean(name, SCHEDULERS)
        raise UserError(f"unknown scheduler {name!r}{hint} (known: {', '.join(SCHEDULERS)})")
    class_name, settings = SCHEDULERS[name]
    schedule = {key: config[key] for key in SCHEDULE_KEYS if key in config}
    if name == "diffwave-fast":
        schedule["inference_betas"] = list(_fast_betas(DiffWaveScheduler(**schedule)))
    own = {"DiffWaveScheduler": DiffWaveScheduler, "LinearMultistepScheduler": LinearMultistepScheduler}
    scheduler_class = own.get(class_name) or getattr(diffusers, class_name)
    try:
        return scheduler_class(**schedule, **settings)
    except ImportError as error:
        raise UserError(f"the scheduler {name!r} needs the package scipy: pip install scipy") from error


def _fast_betas(trained: DiffWaveScheduler) -> tuple[float, ...]:
    """Return FAST_BETAS_200 if its noisiest level is in the training schedule, otherwise FAST_BETAS_50."""
    remaining = 1.0
    for beta in FAST_BETAS_200:
        remaining *= 1 - beta
    return FAST_BETAS_200 if remaining >= trained.alphas_cumprod[-1] else FAST_BETAS_50
