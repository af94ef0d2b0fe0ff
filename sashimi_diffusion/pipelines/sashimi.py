"""The diffusion pipeline: it denoises noise to waveforms with a scheduler that fits the training of the model."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import ModelMixin
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.pipeline_utils import AudioPipelineOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from sashimi_diffusion.data.pre_emphasis import de_emphasize
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.pipelines.base import (
    AudioPipeline,
    batch_size_of,
    check_output_type,
    require_count,
    require_finite_weights,
    sample_generators,
)
from sashimi_diffusion.pipelines.labels import Labels, known_labels, label_conditioning, label_count, repeated
from sashimi_diffusion.pipelines.loading import (
    check_components,
    load_components,
    require_autoregressive,
    resolve_pipeline,
    stored_guidance_scale,
)
from sashimi_diffusion.pipelines.mel import checked_mel, mel_spectrogram, with_frames
from sashimi_diffusion.pipelines.memory import require_call_memory
from sashimi_diffusion.pipelines.options import HUB, check_options, hub_options, weights_dtype
from sashimi_diffusion.pipelines.prediction import Prediction, PredictionGraphs, checked_scale, model_input
from sashimi_diffusion.pipelines.steps import checked_noise, replaced_latents, scheduler_step, set_timesteps
from sashimi_diffusion.schedulers.noise import draw_noise, initial_deviation
from sashimi_diffusion.ssm import frozen

StepCallback = (
    Callable[["SashimiPipeline", int, Tensor, dict[str, Any]], Mapping[str, Any] | None]
    | PipelineCallback
    | MultiPipelineCallbacks
)


class SashimiPipeline(AudioPipeline):
    """Pipeline that generates raw audio with a denoiser of this package.

    On a CUDA device the prediction of the model is recorded as a CUDA graph, once for each shape, and replayed for
    every sampling step. One warning names the reason where this is not possible: the model is offloaded, has hooks, or
    cannot be recorded. The loop does not wait for the device, except for the samplers that
    :func:`~sashimi_diffusion.schedulers.create_scheduler` names.

    Args:
        model: ``SashimiDenoiser``, ``WaveNetDenoiser`` or another diffusers model with the same ``forward``, ``config``
            and ``length_multiple``.
        scheduler: ``DiffWaveScheduler``, or a diffusers scheduler for the training objective of the model
            (:func:`~sashimi_diffusion.schedulers.create_scheduler` creates them with settings for audio).
        guidance_scale: default scale of classifier-free guidance for calls with labels; saved with the pipeline.

    Attributes:
        cuda_graph: True by default; False runs the operations of each step one after the other and drops the recordings
            at the next call.
        num_timesteps: number of sampling steps of the current or last call; 0 before the first one.
        interrupt: whether the call ends after this step; a callback sets it with ``pipe._interrupt = True``.

    Example:
        >>> pipe = SashimiPipeline.from_pretrained("sashimi-digits")
        >>> audios = pipe(batch_size=2, class_labels=[7, 3], generator=torch.Generator().manual_seed(0)).audios
    """

    scheduler: Any
    _callback_tensor_inputs: ClassVar[list[str]] = ["latents", "prediction"]

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
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        model: ModelMixin | None = None,
        scheduler: SchedulerMixin | None = None,
        guidance_scale: float | None = None,
        variant: str | None = None,
        torch_dtype: torch.dtype | dict[str, torch.dtype] | None = None,
        dtype: torch.dtype | dict[str, torch.dtype] | None = None,
        **hub: Any,
    ) -> "SashimiPipeline":
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

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        num_inference_steps: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        audio_length_in_s: float | None = None,
        class_labels: Labels | None = None,
        guidance_scale: float | None = None,
        mel: Tensor | np.ndarray | None = None,
        speaker_labels: Labels | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_step_end: StepCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("latents",),
        latents: Tensor | None = None,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
        eta: float | None = None,
        num_waveforms_per_prompt: int = 1,
    ) -> Any:
        """Generate waveforms.

        Args:
            batch_size: number of waveforms B. Default: the number of labels, mels or latents, or 1.
            num_inference_steps: number of sampling steps. Default: all steps of a ``DiffWaveScheduler``; 50 steps of
                other schedulers, or all steps of the training schedule if it has fewer.
                Schedulers with two predictions in a step, such as Heun's, count steps, not predictions.
            generator: one generator, from which a seed per waveform is drawn in order, so that the audio does not
                depend on how waveforms are split into batches; or a list of B generators, one per waveform. None draws
                the seeds from torch's global generator.
            audio_length_in_s: length in seconds. Default: the length of ``mel``, or the training length.
            class_labels: a class (index or name) for all waveforms, or a sequence of B classes. None: no class. The
                index after the last class stands for no class.
            guidance_scale: scale of classifier-free guidance (arXiv 2207.12598). 0 is the prediction without labels, 1
                the prediction with labels (no guidance); larger scales strengthen the labels, up to
                ``MAX_GUIDANCE_SCALE``; negative ones avoid them. None: the default of the pipeline if there are
                labels, otherwise 1.
            mel: log-mel spectrograms for a vocoder, shape (B, mel_channels, frames) or (mel_channels, frames);
                :meth:`mel` makes them.
            speaker_labels: a speaker (index or name) for all waveforms, or a sequence of B speakers. None: the n-th
                waveform of each class in the batch has the n-th speaker, modulo the number of speakers; if several
                batches form one set, give ``speaker_labels`` explicitly. A model with classes and speakers that is
                given no class gets no speaker either.
            output_type: ``"np"`` for a numpy array, ``"pt"`` for a tensor on the device of the pipeline.
            return_dict: return an ``AudioPipelineOutput`` instead of a tuple.
            callback_on_step_end: called as ``callback(pipe, i, t, {"latents": latents})`` after step i at timestep t, a
                tensor on the CPU. If it returns a dict with ``"latents"`` (B, C, L), these replace the current ones. If
                it sets ``pipe._interrupt = True``, the current latents become the result.
            callback_on_step_end_tensor_inputs: what the callback receives: ``"latents"``, and ``"prediction"`` for what
                the model predicted in this step.
            latents: noise from which sampling starts, standard normal, (B, in_channels, L) with the length rounded up
                to a multiple of ``model.length_multiple``. The generators then draw only the noise of the steps.
            timesteps: timesteps that replace those of the scheduler, from the noisiest one; only for schedulers that
                accept them.
            sigmas: noise levels that replace those of the scheduler, in the same way.
            eta: share of new noise in the steps of a DDIM scheduler, 0 to 1; refused for schedulers without it.
            num_waveforms_per_prompt: waveforms n for each label, each mel, or each element of the batch. The result has
                B · n waveforms: n of the first label, then n of the second one. Generators and latents are B · n.

        Returns:
            ``AudioPipelineOutput`` or a tuple, with ``audios``, float32, shape (B, C, L). Their amplitude is that of
            the training recordings, mostly within [-1, 1]; they are not clipped.

        Raises:
            UserError: arguments that do not fit the model, the scheduler or each other.
        """
        check_output_type(output_type)
        names = self.callback_inputs(callback_on_step_end, callback_on_step_end_tensor_inputs)
        each = require_count("num_waveforms_per_prompt", num_waveforms_per_prompt)
        mel = None if mel is None else checked_mel(self.model.config, mel)
        counts = {"class_labels": label_count(class_labels), "speaker_labels": label_count(speaker_labels)}
        counts |= {"mel": _rows(mel, 1), "latents": _rows(latents, each)}
        count = batch_size_of(batch_size, counts, advice=self._text_advice(batch_size)) * each
        config, device = self.model.config, self._execution_device
        length = self.length_in_samples(audio_length_in_s, mel)
        require_call_memory(config, count, length, device)
        generators = sample_generators(generator, count)
        labels = label_conditioning(config, repeated(class_labels, each), repeated(speaker_labels, each), count)
        labels = {name: own.to(device) for name, own in labels.items()}
        self._guidance_scale = self.resolve_guidance_scale(guidance_scale, bool(labels))
        padded = math.ceil(length / self.model.length_multiple) * self.model.length_multiple
        if mel is not None:
            mel = with_frames(config, mel.repeat_interleave(each, dim=0), padded).to(device, self.model.dtype)
        shape = (count, config.in_channels, padded)
        given = None if latents is None else checked_noise(latents, shape)
        step = scheduler_step(self.scheduler, generators, eta)
        # After all other checks, because it may warn of too few steps.
        visited = self.set_timesteps(num_inference_steps, timesteps, sigmas)
        self._num_timesteps, self._interrupt = len(visited), False

        # The noise and the arithmetic of the scheduler are float32 for every dtype of the model.
        noise = draw_noise(shape, generators, device) if given is None else given.to(device)
        latents = noise * initial_deviation(self.scheduler)  # (B, C, L)
        predict, scale = self._prediction(labels, mel, self._guidance_scale, latents), self._guidance_scale
        with frozen(self.model), self.progress_bar(total=len(visited)) as progress:
            for i, t in enumerate(visited):
                if self._guidance_scale != scale:  # changed by the callback; not recorded, it may change in every step
                    scale = self.resolve_guidance_scale(self._guidance_scale, bool(labels))
                    predict = Prediction(self.model, labels, mel, scale)
                prediction = predict(model_input(self.scheduler, latents, t), t)
                latents = step(prediction, t, latents)
                progress.update()
                if callback_on_step_end is not None:
                    known = {"latents": latents, "prediction": prediction}
                    returned = callback_on_step_end(self, i, t, {name: known[name] for name in names})
                    latents = replaced_latents(known, returned)
                if self._interrupt:
                    break

        # The inverse of Denoiser.normalize; a denoiser of another package need not know pre-emphasis.
        audios: Any = de_emphasize(latents[..., :length] * config.waveform_std, config.get("pre_emphasis", 0.0))
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
            return self.config.guidance_scale if has_labels else 1.0
        if not has_labels and guidance_scale != 1:
            scale = checked_scale(guidance_scale)
            raise UserError(f"guidance_scale is {scale:g}, but there are no class_labels to guide towards")
        return checked_scale(guidance_scale)

    def length_in_samples(self, audio_length_in_s: float | None = None, mel: Tensor | None = None) -> int:
        """Return the number of samples that a call with these arguments generates.

        Raises:
            UserError: the arguments contradict each other, or do not fit the model.
        """
        config = self.model.config
        requested = None if audio_length_in_s is None else self.seconds_to_samples(audio_length_in_s)
        if mel is None:
            return requested or config.sample_size
        length = mel.shape[-1] * math.prod(config.mel_upsample)
        if requested not in (None, length):
            raise UserError(
                f"audio_length_in_s asks for {requested} samples, the mel for {length}: leave audio_length_in_s out"
            )
        return length

    def _prediction(
        self, labels: dict[str, Tensor], mel: Tensor | None, guidance_scale: float, latents: Tensor
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the prediction of a call as a function of the noisy sample and the timestep, recorded if possible."""
        prediction = Prediction(self.model, labels, mel, guidance_scale)
        if not self.cuda_graph:
            self._graphs.clear()
            return prediction
        return self._graphs.prepare(prediction, latents, self.scheduler.timesteps[0])

    def set_timesteps(
        self,
        steps: int | None = None,
        timesteps: Sequence[int] | None = None,
        sigmas: Sequence[float] | None = None,
    ) -> Tensor:
        """Set the timesteps of the scheduler and return them, on the CPU; for the arguments, see :meth:`__call__`.

        Raises:
            UserError: the scheduler does not fit a pipeline, or cannot have these steps.
        """
        return set_timesteps(self.scheduler, steps, timesteps, sigmas, self.model.config)

    def _text_advice(self, batch_size: Any) -> str:
        """Return what to do instead of giving a text as the first argument, for an error message."""
        if not isinstance(batch_size, str):
            return ""
        classes = known_labels(self.model.config, "class")
        choice = "" if classes is None else f", choose with class_labels: {classes.choices}"
        return f"; the pipeline takes no text{choice}"

    def mel(self, audio: Tensor | np.ndarray, sample_rate: int | None = None) -> Tensor:
        """Return the log-mel spectrograms (B, mel_channels, frames) of recordings, as this vocoder takes them.

        Args:
            audio: recordings within [-1, 1], floating-point numbers of shape (L,), (B, L) or (B, 1, L).
            sample_rate: rate of ``audio`` in Hz, from which it is resampled. None: the rate of the model.

        Raises:
            UserError: an error of :func:`.mel_spectrogram`.
        """
        return mel_spectrogram(self.model.config, audio, sample_rate, self._execution_device)


def _rows(tensor: Any, each: int) -> int | None:
    """Return the batch size that a tensor (B, C, L) with ``each`` rows per element means; None without a tensor."""
    return len(tensor) // each if isinstance(tensor, Tensor) and tensor.ndim == 3 else None
