"""A denoiser with a scheduler as a pipeline: construction, loading, LoRA adapters and the default of guidance."""

import os
from typing import Any, TypeVar

import torch
from diffusers import ModelMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.pipelines.base import AudioPipeline, require_finite_weights
from sashimi_diffusion.pipelines.loading import (
    check_components,
    load_components,
    require_autoregressive,
    resolve_pipeline,
    stored_guidance_scale,
)
from sashimi_diffusion.pipelines.options import HUB, check_options, hub_options, weights_dtype
from sashimi_diffusion.pipelines.prediction import PredictionGraphs, checked_scale
from sashimi_diffusion.schedulers.noise_paths import distilled_steps

Pipeline = TypeVar("Pipeline", bound="DiffusionAudioPipeline")


class DiffusionAudioPipeline(AudioPipeline):
    """Base class of the pipeline of diffusion models: everything but the call.

    Args:
        model: a denoiser.
        scheduler: a scheduler with a discrete training schedule.
        guidance_scale: default scale of classifier-free guidance for calls with labels; saved with the pipeline.
    """

    scheduler: Any

    def __init__(self, model: ModelMixin, scheduler: SchedulerMixin, guidance_scale: float = 1.0) -> None:
        super().__init__()
        check_components(model, scheduler)
        self.register_modules(model=model, scheduler=scheduler)
        self.register_to_config(guidance_scale=checked_scale(guidance_scale))
        self.cuda_graph = True
        self._graphs = PredictionGraphs()
        self._guidance_scale = guidance_scale

    @property
    def components(self) -> dict[str, Any]:
        """Arguments of the constructor that make the same pipeline: ``SashimiPipeline(**pipe.components)``."""
        return {**super().components, "guidance_scale": self.config.guidance_scale}

    @property
    def guidance_scale(self) -> float:
        """Scale of classifier-free guidance of the current or last call; before the first one, the default scale.

        A callback may change it for the following steps by setting ``pipe._guidance_scale``, as in diffusers.
        """
        return self._guidance_scale

    @classmethod
    def from_pretrained(
        cls: type[Pipeline],
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        model: ModelMixin | None = None,
        scheduler: SchedulerMixin | None = None,
        guidance_scale: float | None = None,
        variant: str | None = None,
        torch_dtype: torch.dtype | dict[str, torch.dtype] | None = None,
        dtype: torch.dtype | dict[str, torch.dtype] | None = None,
        **hub: Any,
    ) -> Pipeline:
        """Load a pipeline. Code in its folder is not run, and pickles are not read.

        Args:
            pretrained_model_name_or_path: a folder, the name of a bundled pipeline (``"sashimi-digits"``), or the id of
                a repository on the Hugging Face hub.
            model: replaces the stored model; required if its class is not in this package.
            scheduler: replaces the stored scheduler.
            guidance_scale: replaces the stored default scale of classifier-free guidance.
            variant: variant of the weights, for example ``"fp16"``, that was saved with
                ``save_pretrained(folder, variant="fp16")``.
            torch_dtype: dtype of the weights, float32 by default; parameters of state-space layers stay float32.
            dtype: newer name of ``torch_dtype`` in diffusers.
            **hub: options for a repository: ``revision``, ``cache_dir``, ``token``, ``force_download``,
                ``local_files_only``. Other arguments of diffusers are refused by name if they would have an effect.

        Raises:
            UserError: an argument is unknown, the pipeline does not exist or is autoregressive, one of its files is
                missing or corrupt, or its weights are not finite.
        """
        own = ("model", "scheduler", "guidance_scale", "variant", "torch_dtype", "dtype", *HUB)
        check_options(f"{cls.__name__}.from_pretrained", hub, own)
        weights = weights_dtype(torch_dtype, dtype)
        folder = resolve_pipeline(pretrained_model_name_or_path, **hub_options(hub))
        require_autoregressive(folder, False)
        loaded, scheduler = load_components(folder, model, scheduler, weights, variant)
        if model is None:
            require_finite_weights(loaded, folder)
        stored = stored_guidance_scale(folder)
        pipeline = cls(loaded, scheduler, stored if guidance_scale is None else guidance_scale)
        pipeline.register_to_config(_name_or_path=str(folder))
        return pipeline

    def load_lora_weights(
        self, pretrained_model_name_or_path: str | os.PathLike[str], adapter_name: str | None = None, **options: Any
    ) -> None:
        """Load a LoRA adapter into the model, see :meth:`.LoraAdapters.load_lora_adapter`."""
        self.model.load_lora_adapter(pretrained_model_name_or_path, adapter_name, **options)

    def unload_lora_weights(self) -> None:
        """Remove all adapters from the model."""
        self.model.unload_lora()

    def resolve_guidance_scale(self, guidance_scale: float | None, has_labels: bool) -> float:
        """Return the guidance scale of a call: ``guidance_scale``, or the default if it is None; 1 is no guidance.

        Raises:
            UserError: the scale is not a number, beyond ``MAX_GUIDANCE_SCALE``, there are no labels, or the model is a
                student, which has learned the guidance of its teacher.
        """
        if guidance_scale is None:
            return self.config.guidance_scale if has_labels else 1.0
        scale = checked_scale(guidance_scale)
        if scale != 1 and not has_labels:
            raise UserError(f"guidance_scale is {scale:g}, but there are no class_labels to guide towards")
        if scale != 1 and distilled_steps(self.scheduler.config) is not None:
            raise UserError(
                f"guidance_scale is {scale:g}, but this model was distilled and has learned the guidance of its "
                "teacher: leave it out"
            )
        return scale
