"""The autoregressive pipeline: waveforms sample by sample, with or without a prefix, and their likelihoods."""

import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from accelerate.hooks import CpuOffload
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.utils import BaseOutput
from torch import Tensor

from sashimi_diffusion.arguments import short_form
from sashimi_diffusion.data.audio import resample
from sashimi_diffusion.data.quantization import bits_of, decode, encode, normalize
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.generation.generate import BLOCK, Generation, joined, stream
from sashimi_diffusion.generation.sampling import Sampling
from sashimi_diffusion.models import AutoregressiveModel
from sashimi_diffusion.pipelines.base import (
    AudioPipeline,
    batch_size_of,
    check_output_type,
    require_count,
    require_finite_weights,
    sample_generators,
)
from sashimi_diffusion.pipelines.loading import load_model, require_autoregressive, resolve_pipeline, stored_sampling
from sashimi_diffusion.pipelines.memory import require_call_memory
from sashimi_diffusion.pipelines.options import HUB, check_options, hub_options, weights_dtype

BlockCallback = (
    Callable[["SashimiAutoregressivePipeline", int, int, dict[str, Any]], Mapping[str, Any] | None]
    | PipelineCallback
    | MultiPipelineCallbacks
)


@dataclass
class AutoregressivePipelineOutput(BaseOutput):
    """Output of :class:`SashimiAutoregressivePipeline`: numpy arrays, or tensors with ``output_type="pt"``.

    L includes the prefix.

    Args:
        audios: waveforms in [-1, 1), float32 (B, 1, L).
        log_likelihoods: log-likelihood of the generated samples of each waveform, without the prefix, in nats, float64
            (B,).
        log_probabilities: log-probability of each sample given the samples before it, in nats, float32 (B, L).
        entropies: entropy of the model's distribution of each sample, in nats, float32 (B, L).
        prefix_length: number of samples of the prefix.
    """

    audios: np.ndarray | Tensor
    log_likelihoods: np.ndarray | Tensor
    log_probabilities: np.ndarray | Tensor
    entropies: np.ndarray | Tensor
    prefix_length: int


class SashimiAutoregressivePipeline(AudioPipeline):
    """Pipeline that generates raw audio sample by sample with an autoregressive model of this package.

    Args:
        model: ``SashimiAutoregressive``, ``WaveNetAutoregressive``, ``SampleRNN`` or another ``AutoregressiveModel``.
        temperature, top_p: defaults of calls, see :class:`sashimi_diffusion.generation.Sampling`; saved with the
            pipeline.

    Attributes:
        num_timesteps: number of samples of the clips of the current or last call; 0 before the first one.
        interrupt: whether the call ends after this block; a callback sets it with ``pipe._interrupt = True``.

    Example:
        >>> model = SashimiAutoregressive(sample_rate=8000, d_model=8, n_layers=1, pool=[4]).eval()
        >>> pipe = SashimiAutoregressivePipeline(model)
        >>> audios = pipe(batch_size=2, audio_length_in_s=0.1, generator=torch.Generator().manual_seed(0)).audios
    """

    _callback_tensor_inputs: ClassVar[list[str]] = ["audio", "tokens", "log_probabilities", "entropies"]

    def __init__(self, model: AutoregressiveModel, temperature: float = 1.0, top_p: float = 1.0) -> None:
        super().__init__()
        # torch.compile keeps the model in _orig_mod. None is a model that will be set later.
        if model is not None and not isinstance(getattr(model, "_orig_mod", model), AutoregressiveModel):
            raise UserError(f"model is {short_form(model)}: expected one such as SashimiAutoregressive")
        self.register_modules(model=model)
        defaults = Sampling(temperature, None, top_p)
        self.register_to_config(temperature=float(defaults.temperature), top_p=float(defaults.top_p))

    @property
    def components(self) -> dict[str, Any]:
        """Arguments of the constructor that make the same pipeline."""
        return {**super().components, "temperature": self.config.temperature, "top_p": self.config.top_p}

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        model: AutoregressiveModel | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        variant: str | None = None,
        torch_dtype: torch.dtype | dict[str, torch.dtype] | None = None,
        dtype: torch.dtype | dict[str, torch.dtype] | None = None,
        **hub: Any,
    ) -> "SashimiAutoregressivePipeline":
        """Load a pipeline; the arguments are those of :meth:`SashimiPipeline.from_pretrained`.

        Args:
            temperature, top_p: replace the stored defaults.

        Raises:
            UserError: an argument is unknown, the pipeline does not exist or is not autoregressive, a file is missing
                or corrupt, or its weights are not finite.
        """
        own = ("model", "temperature", "top_p", "variant", "torch_dtype", "dtype", *HUB)
        check_options(f"{cls.__name__}.from_pretrained", hub, own)
        weights = weights_dtype(torch_dtype, dtype)
        folder = resolve_pipeline(pretrained_model_name_or_path, **hub_options(hub))
        require_autoregressive(folder, True)
        if model is None:
            model = load_model(folder, AutoregressiveModel, weights, variant)
            require_finite_weights(model, folder)
        stored = stored_sampling(folder)
        temperature = stored.temperature if temperature is None else temperature
        pipeline = cls(model, temperature, stored.top_p if top_p is None else top_p)
        pipeline.register_to_config(_name_or_path=str(folder))
        return pipeline

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int | None = None,
        audio_length_in_s: float | None = None,
        prefix: np.ndarray | Tensor | None = None,
        prefix_rate: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        engine: str = "auto",
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_step_end: BlockCallback | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("audio",),
        num_waveforms_per_prompt: int = 1,
        block: int = BLOCK,
        weights: str = "float32",
    ) -> Any:
        """Generate waveforms.

        Args:
            batch_size: number of waveforms B. Default: the number of prefixes, or 1.
            audio_length_in_s: length in seconds, including the prefix. Default: the training length.
            prefix: waveform that the generated waveforms continue, (P,), (1, P) or (B, P); see :meth:`prefix_tokens`.
            prefix_rate: sample rate of the prefix in Hz; None is that of the model.
            temperature, top_k, top_p: see :class:`sashimi_diffusion.generation.Sampling`. Default: those of the
                pipeline, and all tokens for ``top_k``.
            generator: one generator, from which a seed per waveform is drawn, or a list of B generators.
            engine: see :func:`sashimi_diffusion.generation.create_engine`.
            output_type: ``"np"`` for numpy arrays, ``"pt"`` for tensors.
            return_dict: return an :class:`AutoregressivePipelineOutput` instead of a tuple.
            callback_on_step_end: called as ``callback(pipe, i, t, {"audio": audio})`` after block i, when t samples of
                each waveform are done; the prefix is the first block. What it returns is ignored, because later samples
                depend on those of the block. If it sets ``pipe._interrupt = True``, the result ends with this block.
            callback_on_step_end_tensor_inputs: what the callback receives of the block of n samples: ``"audio"``,
                float32 (B, 1, n), and ``"tokens"``, ``"log_probabilities"``, ``"entropies"``, (B, n).
            num_waveforms_per_prompt: waveforms for each prefix, or for each element of the batch; those of one prefix
                follow each other, and there are as many generators as waveforms.
            block: samples of a block. It does not change the audio.
            weights: format of the weights in memory, see :func:`sashimi_diffusion.generation.create_engine`.

        Returns:
            :class:`AutoregressivePipelineOutput`, or a tuple of its fields.

        Raises:
            UserError: arguments that do not fit the model or each other.
        """
        check_output_type(output_type)
        names = self.callback_inputs(callback_on_step_end, callback_on_step_end_tensor_inputs)
        each = require_count("num_waveforms_per_prompt", num_waveforms_per_prompt)
        tokens, count = self._batch(batch_size, prefix, prefix_rate, each)
        require_call_memory({}, count, None, self.model.device)
        generators = sample_generators(generator, count)
        length = self.length_in_samples(audio_length_in_s)
        self._load_offloaded()
        chosen = self.sampling(temperature, top_k, top_p)
        sampling = (chosen.temperature, chosen.top_k, chosen.top_p)
        parts = stream(self.model, length, block, count, tokens, *sampling, generators, engine, weights)
        self._num_timesteps, self._interrupt = length, False
        blocks: list[Generation] = []
        with self.progress_bar(total=length) as progress:
            for i, part in enumerate(parts):
                blocks.append(part)
                progress.update(part.tokens.shape[1])
                if callback_on_step_end is not None:
                    known = {"audio": self.waveform(part), **part._asdict()}
                    done = sum(one.tokens.shape[1] for one in blocks)
                    callback_on_step_end(self, i, done, {name: known[name] for name in names})
                if self._interrupt:
                    break
        result = joined(blocks)
        tensors = {
            "audios": self.waveform(result),
            "log_likelihoods": result.log_likelihood,
            "log_probabilities": result.log_probabilities,
            "entropies": result.entropies,
        }
        fields: dict[str, Any] = {
            name: tensor.cpu().numpy() if output_type == "np" else tensor for name, tensor in tensors.items()
        }
        self.maybe_free_model_hooks()
        output = AutoregressivePipelineOutput(**fields, prefix_length=result.prefix_length)
        return output if return_dict else output.to_tuple()

    def stream(
        self,
        block: int = BLOCK,
        batch_size: int | None = None,
        audio_length_in_s: float | None = None,
        prefix: np.ndarray | Tensor | None = None,
        prefix_rate: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        engine: str = "auto",
        weights: str = "float32",
    ) -> Iterator[tuple[Tensor, Generation]]:
        """Generate waveforms block by block, without end if ``audio_length_in_s`` is None.

        Args:
            block: samples in a block.
            batch_size, audio_length_in_s, ...: arguments of :meth:`__call__`.

        Returns:
            iterator over pairs of a block of audio, float32 (B, 1, n), and its
            :class:`~sashimi_diffusion.generation.Generation` (tokens, log-probabilities, entropies). n is ``block``,
            except in the first block, if there is a prefix, and in the last one.

        Raises:
            UserError: arguments that do not fit the model or each other, before the first block.
        """
        tokens, count = self._batch(batch_size, prefix, prefix_rate)
        require_call_memory({}, count, None, self.model.device)
        generators = sample_generators(generator, count)
        length = None if audio_length_in_s is None else self.length_in_samples(audio_length_in_s)
        self._load_offloaded()
        # Outside of the generator expression, so that this call raises the errors.
        chosen = self.sampling(temperature, top_k, top_p)
        sampling = (chosen.temperature, chosen.top_k, chosen.top_p)
        blocks = stream(self.model, length, block, count, tokens, *sampling, generators, engine, weights)
        return ((self.waveform(result), result) for result in blocks)

    def _batch(
        self, batch_size: int | None, prefix: np.ndarray | Tensor | None, rate: int | None, each: int = 1
    ) -> tuple[Tensor | None, int]:
        """Return the tokens of the prefixes and the number of waveforms, ``each`` for every element of the batch."""
        tokens = None if prefix is None else self.prefix_tokens(prefix, rate)
        several = tokens is not None and len(tokens) > 1  # a single prefix is that of all waveforms
        counts = {"prefix": len(tokens) if tokens is not None and several else None}
        advice = "; the pipeline takes no text" if isinstance(batch_size, str) else ""
        count = batch_size_of(batch_size, counts, advice) * each
        return (tokens.repeat_interleave(each, dim=0) if tokens is not None and several else tokens), count

    def _load_offloaded(self) -> None:
        """Move the model to its device if ``enable_model_cpu_offload`` moved it to the CPU.

        Its hook runs before ``forward``, which generation does not call.
        """
        hook = getattr(self.model, "_hf_hook", None)
        if isinstance(hook, CpuOffload):
            hook.pre_forward(self.model)

    def enable_group_offload(self, *arguments: Any, **options: Any) -> None:
        """Raise UserError: every sample needs all weights."""
        raise UserError("every sample needs all weights, which are not loaded in groups: use enable_model_cpu_offload")

    def sampling(
        self, temperature: float | None = None, top_k: int | None = None, top_p: float | None = None
    ) -> Sampling:
        """Return how a call with these arguments draws samples: what is None has the default of the pipeline.

        Raises:
            UserError: a value is out of range.
        """
        temperature = self.config.temperature if temperature is None else temperature
        return Sampling(temperature, top_k, self.config.top_p if top_p is None else top_p)

    def length_in_samples(self, audio_length_in_s: float | None = None) -> int:
        """Return the number of samples in ``audio_length_in_s``; the training length if it is None.

        Raises:
            UserError: the length is not a number above 0.
        """
        if audio_length_in_s is None:
            return self.model.config.sample_size
        return self.seconds_to_samples(audio_length_in_s)

    def waveform(self, generation: Generation) -> Tensor:
        """Return the audio of generated tokens, float32 (B, 1, L), decoded by the quantization of the model."""
        config = self.model.config
        return decode(generation.tokens, config.quantization, bits_of(config.num_tokens)).unsqueeze(1)

    def prefix_tokens(self, prefix: np.ndarray | Tensor, rate: int | None = None) -> Tensor:
        """Return the tokens of a waveform, int64 (B, P), prepared like the training data.

        The waveform is resampled to the sample rate of the model, with a warning, scaled from its minimum and maximum
        to the range of the quantization, and quantized.

        Args:
            prefix: mono waveform, (P,) or (B, P).
            rate: sample rate of the waveform in Hz; None is that of the model.

        Raises:
            UserError: the waveform has another shape, is empty or not finite, or is constant and cannot be scaled.
        """
        config = self.model.config
        waveform = torch.as_tensor(np.asarray(prefix, dtype=np.float32))
        waveform = waveform.unsqueeze(0) if waveform.ndim == 1 else waveform
        if waveform.ndim != 2 or not waveform.numel():
            raise UserError(f"the prefix must be a waveform of shape (P,) or (B, P), got {tuple(waveform.shape)}")
        if not waveform.isfinite().all():
            raise UserError("the prefix has samples that are not finite (NaN or infinity)")
        _require_sound(waveform)
        if rate is not None and rate != config.sample_rate:
            warnings.warn(
                f"the prefix is resampled from {rate} Hz to the model's {config.sample_rate} Hz", stacklevel=2
            )
            waveform = torch.from_numpy(resample(waveform.numpy(), rate, config.sample_rate))
        tokens = encode(normalize(waveform, config.quantization), config.quantization, bits_of(config.num_tokens))
        _require_sound(tokens)  # resampling or quantization can leave a single value
        return tokens.to(self.model.device)


def _require_sound(prefix: Tensor) -> None:
    """Raise UserError if a row of a waveform or of tokens (B, L) is constant."""
    if (prefix.amax(dim=-1) == prefix.amin(dim=-1)).any():
        raise UserError(
            f"the prefix has no sound (length {prefix.shape[-1]}, a single value throughout): expected at least two "
            "different samples; give a recording with sound, or leave the prefix out"
        )
