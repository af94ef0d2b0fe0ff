"""The diffusion pipeline: it denoises noise to waveforms with a scheduler that fits the training of the model."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.pipeline_utils import AudioPipelineOutput
from torch import Tensor

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.pipelines.base import batch_size_of, check_output_type, require_count, sample_generators
from sashimi_diffusion.pipelines.diffusion_base import DiffusionAudioPipeline
from sashimi_diffusion.pipelines.given_audio import Known, given_audio, warn_of_level
from sashimi_diffusion.pipelines.labels import Labels, known_labels, label_conditioning, label_count, repeated
from sashimi_diffusion.pipelines.loading import check_components
from sashimi_diffusion.pipelines.mel import checked_mel, mel_spectrogram, with_frames
from sashimi_diffusion.pipelines.memory import require_call_memory
from sashimi_diffusion.pipelines.prediction import Prediction, RecordedPrediction, model_input
from sashimi_diffusion.pipelines.schedule import Call, Schedule, checked_jumps
from sashimi_diffusion.pipelines.steps import Step, checked_noise, replaced_latents, scheduler_step, set_timesteps
from sashimi_diffusion.pipelines.waveforms import denormalized, normalized
from sashimi_diffusion.pipelines.windows import Windows, checked_windows
from sashimi_diffusion.schedulers.noise import draw_noise, initial_deviation
from sashimi_diffusion.ssm import frozen

StepCallback = (
    Callable[["SashimiPipeline", int, Tensor, dict[str, Any]], Mapping[str, Any] | None]
    | PipelineCallback
    | MultiPipelineCallbacks
)

Conditions = tuple[dict[str, Tensor], Tensor | None]
"""The labels, int64 (B,), by name, and the mel (B, mel_channels, frames) or None."""


class SashimiPipeline(DiffusionAudioPipeline):
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

    _callback_tensor_inputs: ClassVar[list[str]] = ["latents", "prediction"]

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
        audio: Tensor | np.ndarray | None = None,
        strength: float | None = None,
        mask: Tensor | np.ndarray | None = None,
        jumps: int | None = None,
        window_in_s: float | None = None,
        overlap_in_s: float | None = None,
        windows_per_batch: int = 8,
    ) -> Any:
        """Generate waveforms.

        Args:
            batch_size: number of waveforms B. Default: the number of labels, mels or latents, or 1.
            num_inference_steps: number of sampling steps. Default: all steps of a ``DiffWaveScheduler``; the steps that
                a distilled pipeline was trained for; 50 steps of other schedulers, or all steps of the training
                schedule if it has fewer.
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
            audio: given waveforms at the rate of the model, full scale 1, (L,), (C, L) or (B, C, L); one waveform
                serves the whole batch. It needs ``strength``, ``mask``, or an ``audio_length_in_s`` beyond its end,
                which continues it.
            strength: share of the training schedule, above 0 and up to 1: sampling begins with the audio noised to this
                timestep, or that of the nearest step, so small numbers change little, and 1 is pure noise (SDEdit,
                arXiv 2108.01073). With a ``mel``, it begins with the waveform that Griffin-Lim makes
                of the mel instead.
            mask: True (or 1) for samples that the result keeps exactly; the others are generated to fit (inpainting). A
                shape that broadcasts to that of the audio, for example (L,).
            jumps: how often each stretch of steps is repeated with a mask or a continuation, after jumping back to the
                noise level of its beginning (RePaint, arXiv 2201.09865). More fit the gaps better to their surroundings
                and take 1 + ``jumps`` times as long.
            window_in_s: the network sees overlapping windows of this length, whose predictions are averaged at every
                step (MultiDiffusion, arXiv 2302.08113), so that it generates far beyond its training length. Windows of
                a ``mel`` have whole frames and are at most this long. None: one window.
            overlap_in_s: what neighboring windows share. Default: a quarter of a window; with a ``mel``,
                ``MEL_OVERLAP_SECONDS``, at most half of a window.
            windows_per_batch: largest number of windows of a waveform in one forward pass.

        Returns:
            ``AudioPipelineOutput`` or a tuple, with ``audios``, float32, shape (B, C, L). Their amplitude is that of
            the training recordings, mostly within [-1, 1]; they are not clipped.

        Raises:
            UserError: arguments that do not fit the model, the scheduler or each other.
        """
        check_components(self.model, self.scheduler)  # they may have been replaced
        check_output_type(output_type)
        names = self.callback_inputs(callback_on_step_end, callback_on_step_end_tensor_inputs)
        each = require_count("num_waveforms_per_prompt", num_waveforms_per_prompt)
        mel = None if mel is None else checked_mel(self.model.config, mel)
        config, device = self.model.config, self._execution_device
        requested = None if audio_length_in_s is None else self.seconds_to_samples(audio_length_in_s)
        given = given_audio(audio, mask, strength, requested, config, mel)
        counts = {"class_labels": label_count(class_labels), "speaker_labels": label_count(speaker_labels)}
        counts |= {
            "mel": _rows(mel, 1),
            "latents": _rows(latents, each),
            "audio": None if given is None else given.rows,
        }
        count = batch_size_of(batch_size, counts, advice=self._text_advice(batch_size)) * each
        length = self.length_in_samples(audio_length_in_s, mel)
        if given is not None and requested is None:
            length = given.audio.shape[-1]
        rows = require_count("windows_per_batch", windows_per_batch)
        windows = checked_windows(length, window_in_s, overlap_in_s, rows, config, self.model.length_multiple)
        padded = windows.length
        held = count * length if windows.count > 1 else 0
        require_call_memory(config, count * windows.rows, windows.window, device, held=held)
        generators = sample_generators(generator, count)
        labels = label_conditioning(config, repeated(class_labels, each), repeated(speaker_labels, each), count)
        labels = {name: own.to(device) for name, own in labels.items()}
        self._guidance_scale = self.resolve_guidance_scale(guidance_scale, bool(labels))
        spectrogram = None
        if mel is not None:
            spectrogram = with_frames(config, mel.repeat_interleave(each, dim=0), padded).to(device)
            mel = spectrogram.to(self.model.dtype)
        shape = (count, config.in_channels, padded)
        own_noise = None if latents is None else checked_noise(latents, shape)
        step = scheduler_step(self.scheduler, generators, eta)
        jumps = checked_jumps(jumps, given is not None and given.keep is not None)
        # After all other checks, because it may warn of too few steps.
        self.set_timesteps(num_inference_steps, timesteps, sigmas)
        schedule = Schedule(self.scheduler)
        strength = 1.0 if given is None or given.strength is None else given.strength
        schedule.check_strength(strength)
        start = schedule.first_step(strength)
        calls = schedule.calls(start, jumps)
        self._num_timesteps, self._interrupt = len(calls), False

        # The noise and the arithmetic of the scheduler are float32 for every dtype of the model.
        noise = draw_noise(shape, generators, device) if own_noise is None else own_noise.to(device)
        latents = noise * initial_deviation(self.scheduler)  # (B, C, L)
        known = None
        if given is not None:
            if mel is None:
                warn_of_level(given, config)
            given = given.placed(each, count, padded)
            if given.keep is not None:
                known = Known(given, config, schedule, generators, device)
                latents = known.restored(latents, schedule.levels[0], noise)
            elif given.strength != 1:
                latents = schedule.levels[start].of(normalized(given.audio.to(device), config, spectrogram), noise)
                schedule.begin(start)

        def on_step_end(i: int, timestep: Tensor, latents: Tensor, prediction: Tensor) -> Tensor:
            if callback_on_step_end is None:
                return latents
            tensors = {"latents": latents, "prediction": prediction}
            returned = callback_on_step_end(self, i, timestep, {name: tensors[name] for name in names})
            return replaced_latents(tensors, returned)

        latents = self._denoise(latents, calls, step, (labels, mel), windows, known, on_step_end)
        audios: Any = denormalized(latents, config, spectrogram)[..., :length]
        if known is not None:
            audios = known.joined(audios)
        if output_type == "np":
            audios = audios.cpu().numpy()
        self.maybe_free_model_hooks()
        return AudioPipelineOutput(audios=audios) if return_dict else (audios,)

    def _denoise(
        self,
        latents: Tensor,
        calls: Sequence[Call],
        step: Step,
        conditions: Conditions,
        windows: Windows,
        known: Known | None,
        on_step_end: Callable[[int, Tensor, Tensor, Tensor], Tensor],
    ) -> Tensor:
        """Return the result of the sampling loop, as the diffusion sees it, (B, C, L)."""
        scale = self._guidance_scale
        predict = self._prediction(conditions, scale, latents, windows)
        with frozen(self.model), self.progress_bar(total=len(calls)) as progress:
            for i, call in enumerate(calls):
                if self._guidance_scale != scale:  # changed by the callback; not recorded, it may change in every step
                    scale = self.resolve_guidance_scale(self._guidance_scale, bool(conditions[0]))
                    predict = self._prediction(conditions, scale, latents, windows, recorded=False)
                latents = latents if known is None else known.before(call, latents)
                prediction = predict(model_input(self.scheduler, latents, call.timestep), call.timestep)
                latents = step(prediction, call.timestep, latents)
                latents = latents if known is None else known.after(call, latents)
                progress.update()
                latents = on_step_end(i, call.timestep, latents, prediction)
                if self._interrupt:
                    break
        return latents

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
        self,
        conditions: Conditions,
        guidance_scale: float,
        latents: Tensor,
        windows: Windows,
        recorded: bool = True,
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Return the prediction of a call as a function of the noisy sample and the timestep, recorded if possible."""
        labels, mel = conditions
        labels = {name: own.repeat(windows.rows) for name, own in labels.items()}
        latents, first_mel = windows.first(latents), None if mel is None else windows.first(mel)
        predict: Prediction | RecordedPrediction
        predict = prediction = Prediction(self.model, labels, first_mel, guidance_scale)
        if not self.cuda_graph:
            self._graphs.clear()
        elif recorded:
            predict = self._graphs.prepare(prediction, latents, self.scheduler.timesteps[0])
        return predict if windows.count == 1 else functools.partial(windows.predict, predict, mel=mel)

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
