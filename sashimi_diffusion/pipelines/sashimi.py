"""The diffusion pipeline: it denoises noise to waveforms with a scheduler that has a discrete training schedule."""

import inspect
import math
import os
from collections.abc import Callable
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.pipelines.pipeline_utils import AudioPipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.pipelines.base import (
    AudioPipeline,
    check_request,
    require_finite_weights,
    sample_generators,
)
from sashimi_diffusion.pipelines.labels import Labels, label_conditioning
from sashimi_diffusion.pipelines.loading import (
    MAX_GUIDANCE_SCALE,
    load_components,
    require_autoregressive,
    resolve_pipeline,
    stored_guidance_scale,
)
from sashimi_diffusion.pipelines.prediction import Prediction, PredictionGraphs
from sashimi_diffusion.schedulers import DiffWaveScheduler
from sashimi_diffusion.schedulers.levels import check_levels
from sashimi_diffusion.schedulers.noise import draw_noise
from sashimi_diffusion.ssm import frozen

StepCallback = Callable[["SashimiPipeline", int, torch.Tensor, dict[str, Any]], dict[str, Any] | None]


class SashimiPipeline(AudioPipeline):
    """Pipeline that generates raw audio with a denoiser of this package.

    On a CUDA device the prediction of the model is recorded as a CUDA graph, once for each shape, and replayed for
    every sampling step. One warning names the reason where this is not possible: the model is offloaded, has hooks, or
    cannot be recorded. The loop does not wait for the device, except for the samplers that
    :func:`~sashimi_diffusion.schedulers.create_scheduler` names.

    Args:
        model: ``SashimiDenoiser``, ``WaveNetDenoiser`` or another diffusers model with the same ``forward``, ``config``
            and ``length_multiple``.
        scheduler: ``DiffWaveScheduler``, or a diffusers scheduler with a discrete training schedule
            (:func:`~sashimi_diffusion.schedulers.create_scheduler` creates them with settings for audio).
        guidance_scale: default scale of classifier-free guidance for calls with labels; saved with the pipeline.

    Attributes:
        cuda_graph: True by default; False runs the operations of each step one after the other and drops the recordings
            at the next call.

    Example:
        >>> pipe = SashimiPipeline.from_pretrained("sashimi-digits")
        >>> audios = pipe(batch_size=2, class_labels=[7, 3], generator=torch.Generator().manual_seed(0)).audios
    """

    scheduler: Any
    model_cpu_offload_seq: Any = "model"

    def __init__(self, model: ModelMixin, scheduler: SchedulerMixin, guidance_scale: float = 1.0) -> None:
        super().__init__()
        self.register_modules(model=model, scheduler=scheduler)
        self.register_to_config(guidance_scale=guidance_scale)
        self.cuda_graph = True
        self._graphs = PredictionGraphs()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        model: ModelMixin | None = None,
        scheduler: SchedulerMixin | None = None,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        **hub: Any,
    ) -> "SashimiPipeline":
        """Load a pipeline. Code in its folder is not run, and pickles are not read.

        Args:
            pretrained_model_name_or_path: a folder, the name of a bundled pipeline (``"sashimi-digits"``), or the id of
                a repository on the Hugging Face hub.
            model: replaces the stored model; required if its class is not in this package.
            scheduler: replaces the stored scheduler.
            torch_dtype: dtype of the weights, float32 by default; parameters of state-space layers stay float32.
            dtype: newer name of ``torch_dtype`` in diffusers.
            **hub: options for a repository: ``revision``, ``cache_dir``, ``token``, ``force_download``,
                ``local_files_only``.

        Raises:
            UserError: the pipeline does not exist or is autoregressive, one of its files is missing or corrupt, or its
                weights are not finite.
        """
        folder = resolve_pipeline(pretrained_model_name_or_path, **hub)
        if model is None:
            require_autoregressive(folder, False)
        loaded, scheduler = load_components(folder, model, scheduler, dtype or torch_dtype)
        if model is None:
            require_finite_weights(loaded, folder)
        pipeline = cls(loaded, scheduler, stored_guidance_scale(folder))
        pipeline.register_to_config(_name_or_path=str(folder))
        return pipeline

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        audio_length_in_s: float | None = None,
        class_labels: Labels | None = None,
        guidance_scale: float | None = None,
        mel: torch.Tensor | None = None,
        speaker_labels: Labels | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
    ) -> Any:
        """Generate waveforms.

        Args:
            batch_size: number of waveforms B.
            num_inference_steps: number of sampling steps. Default: all steps of a ``DiffWaveScheduler``; 50 steps of
                other schedulers, or all steps of the training schedule if it has fewer.
            generator: one generator, from which a seed per waveform is drawn in order, so that the audio does not
                depend on how waveforms are split into batches; or a list of B generators, one per waveform. None draws
                the seeds from torch's global generator.
            audio_length_in_s: length in seconds. Default: the length of ``mel``, or the training length.
            class_labels: a class (index or name) for all waveforms, or a sequence of B classes. None: no class.
            guidance_scale: scale of classifier-free guidance (arXiv 2207.12598). 0 is the prediction without labels, 1
                the prediction with labels (no guidance); larger scales strengthen the labels, up to
                ``MAX_GUIDANCE_SCALE``; negative ones avoid them. None: the default of the pipeline if there are
                labels, otherwise 1.
            mel: log-mel spectrograms for a vocoder, shape (B, mel_channels, frames).
            speaker_labels: a speaker (index or name) for all waveforms, or a sequence of B speakers. None: the n-th
                waveform of each class in the batch has the n-th speaker, modulo the number of speakers; if several
                batches form one set, give ``speaker_labels`` explicitly. A model with classes and speakers that is
                given no class gets no speaker either.
            output_type: ``"np"`` for a numpy array, ``"pt"`` for a tensor on the device of the pipeline.
            return_dict: return an ``AudioPipelineOutput`` instead of a tuple.
            callback_on_step_end: called as ``callback(pipe, i, t, {"latents": latents})`` after step i at timestep t, a
                tensor on the CPU. If it returns a dict with ``"latents"`` (B, C, L), these replace the current ones.

        Returns:
            ``AudioPipelineOutput`` or a tuple, with ``audios``, float32, shape (B, C, L). Their amplitude is that of
            the training recordings, mostly within [-1, 1]; they are not clipped.

        Raises:
            UserError: arguments that do not fit the model, the scheduler or each other.
        """
        check_request(batch_size, output_type)
        config, device = self.model.config, self._execution_device
        labels = label_conditioning(config, class_labels, speaker_labels, batch_size)
        labels = {name: own.to(device) for name, own in labels.items()}
        guidance_scale = self.resolve_guidance_scale(guidance_scale, bool(labels))
        length = self.length_in_samples(audio_length_in_s, mel)
        padded = math.ceil(length / self.model.length_multiple) * self.model.length_multiple
        if mel is not None:
            mel = self._padded_mel(mel, batch_size, padded)
        timesteps = self.set_timesteps(num_inference_steps)

        generators = sample_generators(generator, batch_size)
        # The noise and the arithmetic of the scheduler are float32 for every dtype of the model.
        noise = draw_noise((batch_size, config.in_channels, padded), generators, device)
        latents = noise * self.scheduler.init_noise_sigma  # (B, C, L)

        predict, step = self._prediction(labels, mel, guidance_scale, latents), self._step(generators)
        with frozen(self.model), self.progress_bar(total=len(timesteps)) as progress:
            for i, t in enumerate(timesteps):
                prediction = predict(self.scheduler.scale_model_input(latents, t), t)
                latents = step(prediction, t, latents)
                if callback_on_step_end is not None:
                    changed = callback_on_step_end(self, i, t, {"latents": latents}) or {}
                    latents = changed.get("latents", latents)
                progress.update()

        audios = latents[..., :length] * config.waveform_std
        if output_type == "np":
            audios = audios.cpu().numpy()
        self.maybe_free_model_hooks()
        return AudioPipelineOutput(audios=audios) if return_dict else (audios,)

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
            UserError: the scale is not a number, beyond ``MAX_GUIDANCE_SCALE``, or there are no labels.
        """
        if guidance_scale is None:
            guidance_scale = self.config.guidance_scale if has_labels else 1.0
        elif not has_labels and guidance_scale != 1:
            raise UserError(f"guidance_scale is {guidance_scale:g}, but there are no class_labels to guide towards")
        if not abs(guidance_scale) <= MAX_GUIDANCE_SCALE:
            limits = f"{-MAX_GUIDANCE_SCALE:g} to {MAX_GUIDANCE_SCALE:g}"
            raise UserError(f"guidance_scale is {guidance_scale:g}, expected a number from {limits}")
        return guidance_scale

    def length_in_samples(self, audio_length_in_s: float | None = None, mel: torch.Tensor | None = None) -> int:
        """Return the number of samples that a call with these arguments generates.

        Raises:
            UserError: the arguments contradict each other, or do not fit the model.
        """
        config = self.model.config
        requested = None if audio_length_in_s is None else self.seconds_to_samples(audio_length_in_s)
        if mel is None:
            return requested or config.sample_size
        if config.mel_channels is None:
            raise UserError("a mel was given, but this model is not a vocoder: leave it out")
        length = mel.shape[-1] * math.prod(config.mel_upsample)
        if requested not in (None, length):
            raise UserError(
                f"audio_length_in_s asks for {requested} samples, the mel for {length}: leave audio_length_in_s out"
            )
        return length

    def _prediction(
        self, labels: dict[str, torch.Tensor], mel: torch.Tensor | None, guidance_scale: float, latents: torch.Tensor
    ) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Return the prediction of a call as a function of the noisy sample and the timestep, recorded if possible."""
        prediction = Prediction(self.model, labels, mel, guidance_scale)
        if not self.cuda_graph:
            self._graphs.clear()
            return prediction
        return self._graphs.prepare(prediction, latents, self.scheduler.timesteps[0])

    def _step(
        self, generators: list[torch.Generator]
    ) -> Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]:
        """Return the step of the scheduler as a function of the prediction, the timestep and the noisy sample."""
        arguments = inspect.signature(self.scheduler.step).parameters
        # Noise that a scheduler of diffusers draws itself makes it wait for the device.
        takes_noise = "variance_noise" in arguments and "sde" in self.scheduler.config.get("algorithm_type", "")

        def step(prediction: torch.Tensor, timestep: torch.Tensor, latents: torch.Tensor) -> torch.Tensor:
            options: dict[str, Any] = {}
            if takes_noise:
                options["variance_noise"] = draw_noise(latents.shape, generators, latents.device)
            elif "generator" in arguments:
                options["generator"] = generators
            return self.scheduler.step(prediction, timestep, latents, **options).prev_sample

        return step

    def set_timesteps(self, steps: int | None = None) -> torch.Tensor:
        """Set the timesteps of the scheduler and return them, on the CPU, so that no step waits for the device.

        Args:
            steps: number of sampling steps, see :meth:`__call__`.

        Raises:
            UserError: the scheduler does not fit a pipeline, or cannot have this number of steps.
        """
        scheduler = self.scheduler
        # The times of a scheduler in continuous time are not those that the model was trained with: it returns noise.
        if not hasattr(scheduler, "alphas_cumprod"):
            raise UserError(
                f"{type(scheduler).__name__} has no discrete training schedule and does not fit this model: "
                "use one of sashimi_diffusion.schedulers.create_scheduler"
            )
        total = scheduler.config.num_train_timesteps
        if steps is None and not isinstance(scheduler, DiffWaveScheduler):
            steps = min(50, total)
        if steps is not None and not 1 <= steps <= total:
            raise UserError(
                f"cannot sample in {steps} steps: the model was trained with {total}, so ask for 1 to {total}"
            )
        scheduler.set_timesteps(steps, device="cpu")
        # With trailing spacing, diffusers rounds some numbers of steps (29 of 200) to an extra step at -1.
        if scheduler.timesteps.min() < 0:
            raise UserError(
                f"{type(scheduler).__name__} cannot divide {total} into {steps} steps: ask for another number"
            )
        check_levels(scheduler)
        # Otherwise diffusers starts at the second step if rounding made the first two timesteps equal.
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        return scheduler.timesteps

    def _padded_mel(self, mel: torch.Tensor, batch_size: int, length: int) -> torch.Tensor:
        """Return ``mel`` on the device, with enough frames for ``length`` samples."""
        mel_channels = self.model.config.mel_channels
        if mel.ndim != 3 or mel.shape[:2] != (batch_size, mel_channels):
            raise UserError(f"mel has shape {tuple(mel.shape)}, expected ({batch_size}, {mel_channels}, frames)")
        # Frames are missing only if the length was rounded up to the multiple of the model.
        missing = math.ceil(length / math.prod(self.model.config.mel_upsample)) - mel.shape[-1]
        mel = torch.nn.functional.pad(mel, (0, max(missing, 0)), mode="replicate")
        return mel.to(self._execution_device, self.model.dtype)
