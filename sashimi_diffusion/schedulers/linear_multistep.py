"""The fourth-order linear multistep sampler (IPNDM of diffusers) with a discrete training schedule.

The class of diffusers has no training schedule: it uses a continuous time in [0, 1] and expects a network that predicts
v. Here the noise levels and timesteps are those of the training schedule, and epsilon is converted to v. The update is
that of diffusers.
"""

from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.schedulers.scheduling_ipndm import IPNDMScheduler
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput

from sashimi_diffusion.bundled import BundledByName
from sashimi_diffusion.schedulers.diffwave import DiffWaveScheduler

__all__ = ["ConfigMixin", "LinearMultistepScheduler", "SchedulerMixin"]  # diffusers looks the mixins up in this module


class LinearMultistepScheduler(BundledByName, IPNDMScheduler):  # type: ignore[misc]  # as DiffWaveScheduler
    """IPNDM (arXiv 2202.09778, eq. 9, 12 and 13) at the noise levels of a model trained with T discrete steps.

    Args:
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, prediction_type: the training schedule;
            see ``DiffWaveScheduler``.
    """

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
    ) -> None:
        self._trained = DiffWaveScheduler(
            num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, prediction_type
        )
        self.alphas_cumprod = self._trained.alphas_cumprod
        self.init_noise_sigma = 1.0
        self.pndm_order = 4
        self.set_timesteps(num_train_timesteps)

    def set_timesteps(self, num_inference_steps: int, device: str | torch.device | None = None) -> None:
        """Set the noise levels that sampling visits: ``num_inference_steps`` of the training schedule.

        Raises:
            UserError: the number of steps is not from 1 to T.
        """
        self._trained.set_timesteps(num_inference_steps)
        self.num_inference_steps = num_inference_steps
        self.timesteps = self._trained.timesteps.to(device)
        signal = torch.cat([self.alphas_cumprod[self._trained.timesteps], torch.ones(1)])
        # Names of the base class: x = alphas * x_0 + betas * eps; one entry per level and one for the clean sample.
        self.alphas = signal.sqrt()
        self.betas = (1 - signal).sqrt()
        self.ets = []
        self._step_index = None
        self._begin_index = None

    def step(
        self,
        model_output: torch.Tensor,
        timestep: int | torch.Tensor,
        sample: torch.Tensor,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[torch.Tensor]:
        """Run one step of the solver, from the noise level of ``timestep`` to the next lower level.

        Args:
            model_output: epsilon or v, shape (B, C, L).
            timestep: one of ``timesteps``.
            sample: x_t, shape (B, C, L).
            return_dict: return a ``SchedulerOutput`` instead of a tuple.

        Returns:
            ``prev_sample``, the sample at the next lower level; after the last step, the generated x_0.
        """
        velocity = model_output
        if self.config.prediction_type == "epsilon":
            if self.step_index is None:
                self._init_step_index(timestep)
            signal, deviation = self.alphas[self.step_index], self.betas[self.step_index]
            velocity = (model_output - deviation * sample) / signal
        return super().step(velocity, timestep, sample, return_dict)
