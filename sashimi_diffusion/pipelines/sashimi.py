"""The pipeline: noise in, waveforms out, by any epsilon- or v-prediction scheduler with a training schedule."""

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AudioPipelineOutput, DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.pipelines.labels import Labels, chosen_labels, null_labels
from sashimi_diffusion.pipelines.loading import load_components, resolve_pipeline, stored_guidance_scale
from sashimi_diffusion.pipelines.remote_code import write_remote_code
from sashimi_diffusion.schedulers import DiffWaveScheduler

StepCallback = Callable[["SashimiPipeline", int, torch.Tensor, dict[str, Any]], dict[str, Any] | None]


class SashimiPipeline(DiffusionPipeline):
    """Generates raw audio with a denoiser of this package.

    Args:
        model: ``SashimiDenoiser``, ``WaveNetDenoiser`` or any diffusers model with their ``forward``, ``config`` and
            ``length_multiple``.
        scheduler: ``DiffWaveScheduler``, or a diffusers scheduler for models trained on discrete noise levels
            (``create_scheduler`` builds them with settings that suit audio).
        guidance_scale: of classifier-free guidance where a call names none; saved with the pipeline.

    Example:
        >>> pipe = SashimiPipeline.from_pretrained("sashimi-digits")
        >>> audios = pipe(batch_size=2, class_labels=[7, 3], generator=torch.Generator().manual_seed(0)).audios
    """

    model_cpu_offload_seq = "model"

    def __init__(self, model: ModelMixin, scheduler: SchedulerMixin, guidance_scale: float = 1.0) -> None:
        super().__init__()
        self.register_modules(model=model, scheduler=scheduler)
        self.register_to_config(guidance_scale=guidance_scale)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        model: ModelMixin | None = None,
        scheduler: SchedulerMixin | None = None,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        **hub: Any,
    ) -> "SashimiPipeline":
        """Load a pipeline; runs no code of the folder, reads no pickles.

        Args:
            pretrained_model_name_or_path: a folder, a bundled pipeline's name (``"sashimi-digits"``), or the id of a
                repository on the Hugging Face hub.
            model: takes the place of the stored model; needed when its class is not one of this package.
            scheduler: takes the place of the stored scheduler.
            torch_dtype: dtype of the weights, float32 by default; parameters of state-space layers stay float32.
            dtype: diffusers' newer name of ``torch_dtype``.
            **hub: for a repository: ``revision``, ``cache_dir``, ``token``, ``force_download``, ``local_files_only``.

        Raises:
            UserError: nothing by that name, or a missing or corrupt file, which it names.
        """
        folder = resolve_pipeline(pretrained_model_name_or_path, **hub)
        model, scheduler = load_components(folder, model, scheduler, dtype or torch_dtype)
        pipeline = cls(model, scheduler, stored_guidance_scale(folder))
        pipeline.register_to_config(_name_or_path=str(folder))
        return pipeline

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Write a folder that this class loads, and plain diffusers with ``trust_remote_code=True``.

        Args:
            save_directory: the folder, made where missing.
            **options: as in diffusers (``push_to_hub``, ``repo_id``, ``max_shard_size``, ...).

        Raises:
            UserError: when pickled weights are asked for.
        """
        if not options.get("safe_serialization", True):
            raise UserError("pipelines are saved as safetensors only: leave out safe_serialization=False")
        super().save_pretrained(str(save_directory), **options)

    def save_config(self, save_directory: str | Path, push_to_hub: bool = False, **options: Any) -> None:
        """Write ``model_index.json`` and the remote-code files (diffusers calls this before it uploads a folder)."""
        super().save_config(save_directory, push_to_hub=push_to_hub, **options)
        write_remote_code(Path(save_directory), type(self), self.components)

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
    ) -> AudioPipelineOutput | tuple[Any]:
        """Generate waveforms.

        Args:
            batch_size: number of waveforms B.
            num_inference_steps: by default all steps of a ``DiffWaveScheduler``, and of other schedulers 50 (or as many
                as the model was trained with, where these are fewer).
            generator: one generator, from which one seed per waveform is drawn in order, so that the audio does not
                depend on how the waveforms are split into batches; or a list of B generators, used as they are;
                ``None`` draws the seeds from torch's global one.
            audio_length_in_s: seconds; by default the length the model was trained on, or the length of ``mel``.
            class_labels: a class (index or name) for all, or B of them; ``None`` is no class.
            guidance_scale: classifier-free guidance (arXiv 2207.12598) towards class and speaker, away from neither of
                them: 1 is none, 0 ignores the labels. ``None``: the pipeline's own where there are labels.
            mel: log-mel spectrograms, shape (B, mel_channels, frames), of a vocoder.
            speaker_labels: a speaker (index or name) for all, or B of them. ``None``: speakers take turns within each
                class of ``class_labels``, in the order of the batch. The first waveform of every class is by the first
                speaker, the second by the second: ten classes in turn, six times over, are every class by every
                speaker. Batches that are parts of a whole must be told theirs. A model of classes and speakers that is
                given no class is told no speaker either.
            output_type: ``"np"`` for a numpy array, ``"pt"`` for a tensor on the pipeline's device.
            return_dict: return an ``AudioPipelineOutput``, otherwise a tuple.
            callback_on_step_end: called as ``callback(pipe, i, t, {"latents": latents})`` after step i at timestep t; a
                ``"latents"`` (B, C, L) in the dict it returns takes the place of the current ones.

        Returns:
            ``audios``, float32, shape (B, C, L), in the amplitude of the training recordings: mostly within [-1, 1],
            and not clipped.

        Raises:
            UserError: for arguments that do not fit the model, the scheduler or each other.
        """
        config, device = self.model.config, self._execution_device
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}, expected at least 1")
        if output_type not in ("np", "pt"):
            raise UserError(f"output_type is {output_type!r}, expected 'np' or 'pt'")
        labels = self._labels(class_labels, speaker_labels, batch_size, guidance_scale)
        guidance_scale = self.guidance(guidance_scale, bool(labels))
        length = self.length_in_samples(audio_length_in_s, mel)
        padded = math.ceil(length / self.model.length_multiple) * self.model.length_multiple
        if mel is not None:
            mel = self._fitted_mel(mel, batch_size, padded)
        timesteps = self._timesteps(num_inference_steps)

        generators = sample_generators(generator, batch_size)
        # The noise and the scheduler's arithmetic are float32 whatever the model's dtype.
        noise = randn_tensor((batch_size, config.in_channels, padded), generators, device, torch.float32)
        latents = noise * self.scheduler.init_noise_sigma  # (B, C, L)

        options = {"generator": generators} if "generator" in inspect.signature(self.scheduler.step).parameters else {}
        with self.progress_bar(total=len(timesteps)) as progress:
            for i, t in enumerate(timesteps):
                scaled = self.scheduler.scale_model_input(latents, t)
                prediction = self._predict(scaled, t, labels, mel, guidance_scale)
                latents = self.scheduler.step(prediction, t, latents, **options).prev_sample
                if callback_on_step_end is not None:
                    changed = callback_on_step_end(self, i, t, {"latents": latents}) or {}
                    latents = changed.get("latents", latents)
                progress.update()

        audios = latents[..., :length] * config.waveform_std
        if output_type == "np":
            audios = audios.cpu().numpy()
        self.maybe_free_model_hooks()
        return AudioPipelineOutput(audios=audios) if return_dict else (audios,)

    def guidance(self, asked: float | None, told: bool) -> float:
        """The guidance scale of a call that asks for one or (None) not, and tells labels or not; 1 is none."""
        if asked is not None:
            return asked
        return self.config.guidance_scale if told else 1.0

    def length_in_samples(self, audio_length_in_s: float | None = None, mel: torch.Tensor | None = None) -> int:
        """How many samples a call with these arguments generates.

        Raises:
            UserError: they contradict each other or the model.
        """
        config = self.model.config
        asked = None
        if audio_length_in_s is not None:
            # One sample is the least; infinity cannot be rounded.
            if not (math.isfinite(audio_length_in_s) and round(audio_length_in_s * config.sample_rate) >= 1):
                raise UserError(f"cannot generate {audio_length_in_s:g} seconds of audio: ask for a number above 0")
            asked = round(audio_length_in_s * config.sample_rate)
        if mel is None:
            return asked or config.sample_size
        if config.mel_channels is None:
            raise UserError("a mel was given, but this model is no vocoder: leave it out")
        given = mel.shape[-1] * math.prod(config.mel_upsample)
        if asked not in (None, given):
            raise UserError(
                f"audio_length_in_s asks for {asked} samples, the mel for {given}: leave audio_length_in_s out"
            )
        return given

    def _predict(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        labels: dict[str, torch.Tensor],
        mel: torch.Tensor | None,
        guidance_scale: float,
    ) -> torch.Tensor:
        guided = guidance_scale != 1
        if guided:
            # Both predictions in one forward of 2B.
            null = null_labels(self.model.config, labels)
            sample, labels = torch.cat([sample, sample]), {name: torch.cat([labels[name], null[name]]) for name in null}
            mel = None if mel is None else torch.cat([mel, mel])
        prediction = self.model(
            sample.to(self.model.dtype), timestep.expand(len(sample)), **labels, mel=mel
        ).sample.float()
        if not guided:
            return prediction
        conditional, unconditional = prediction.chunk(2)
        return unconditional + guidance_scale * (conditional - unconditional)

    def _timesteps(self, steps: int | None) -> torch.Tensor:
        scheduler = self.scheduler
        # Schedulers in continuous time tell the network a time that it was not trained on, and sound like noise.
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
        scheduler.set_timesteps(steps, device=self._execution_device)
        # With trailing spacing, rounding makes diffusers add a step at -1 for some numbers of steps (29 of 200).
        if scheduler.timesteps.min() < 0:
            raise UserError(
                f"{type(scheduler).__name__} cannot divide {total} into {steps} steps: ask for another number"
            )
        # Without it diffusers starts at the second step wherever rounding made the first two timesteps equal.
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        return scheduler.timesteps

    def _labels(
        self, class_labels: Labels | None, speaker_labels: Labels | None, batch_size: int, guidance_scale: float | None
    ) -> dict[str, torch.Tensor]:
        labels = chosen_labels(self.model.config, class_labels, speaker_labels, batch_size)
        if not labels and guidance_scale not in (None, 1):
            raise UserError(f"guidance_scale is {guidance_scale:g}, but there are no class_labels to guide towards")
        if guidance_scale is not None and not math.isfinite(guidance_scale):
            raise UserError(f"guidance_scale is {guidance_scale}, expected a number")
        return {name: own.to(self._execution_device) for name, own in labels.items()}

    def _fitted_mel(self, mel: torch.Tensor, batch_size: int, length: int) -> torch.Tensor:
        mel_channels = self.model.config.mel_channels
        if mel.ndim != 3 or mel.shape[:2] != (batch_size, mel_channels):
            raise UserError(f"mel has shape {tuple(mel.shape)}, expected ({batch_size}, {mel_channels}, frames)")
        missing = math.ceil(length / math.prod(self.model.config.mel_upsample)) - mel.shape[-1]
        # Only the rounding up of the length to the model's multiple can ask for more frames than given.
        mel = torch.nn.functional.pad(mel, (0, max(missing, 0)), mode="replicate")
        return mel.to(self._execution_device, self.model.dtype)


def sample_generators(generator: torch.Generator | list[torch.Generator] | None, count: int) -> list[torch.Generator]:
    """One generator per sample: a given list as it is, otherwise new ones on the CPU from ``sample_seeds``.

    Raises:
        UserError: for a list of another length than ``count``.
    """
    if isinstance(generator, list):
        if len(generator) != count:
            raise UserError(
                f"got {len(generator)} generators for a batch of {count}: give one for each, or a single one"
            )
        return generator
    return [torch.Generator().manual_seed(seed) for seed in sample_seeds(generator, count)]


def sample_seeds(generator: torch.Generator | None, count: int) -> list[int]:
    """One seed after the other, so that the first n do not depend on ``count``; ``None``: torch's global generator."""
    device = "cpu" if generator is None else generator.device
    draw = {"generator": generator, "device": device, "dtype": torch.int64}
    return [int(torch.randint(2**63 - 1, (1,), **draw)) for _ in range(count)]
