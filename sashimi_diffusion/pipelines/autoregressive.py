"""The pipeline of the autoregressive models: a recording's beginning in, or nothing; waveforms and their odds out."""

import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import Tensor

from sashimi_diffusion.data.audio import resample
from sashimi_diffusion.data.quantization import decode, encode, normalize
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.generation import Generation, generate, stream
from sashimi_diffusion.models import AutoregressiveModel
from sashimi_diffusion.pipelines.loading import load_model, resolve_pipeline
from sashimi_diffusion.pipelines.remote_code import write_remote_code
from sashimi_diffusion.pipelines.sashimi import sample_generators


@dataclass
class AutoregressivePipelineOutput(BaseOutput):
    """Clips of :class:`SashimiAutoregressivePipeline`, all arrays or all tensors.

    Args:
        audios: waveforms in [-1, 1), float32 (B, 1, L).
        log_likelihoods: of the samples that were made, in nats, (B,).
        log_probabilities: of each sample given those before it, prefix included, in nats, (B, L).
        entropies: of the distribution of each sample, in nats, (B, L).
        prefix_length: how many of the L samples were given.
    """

    audios: np.ndarray | Tensor
    log_likelihoods: np.ndarray | Tensor
    log_probabilities: np.ndarray | Tensor
    entropies: np.ndarray | Tensor
    prefix_length: int


class SashimiAutoregressivePipeline(DiffusionPipeline):
    """Generates raw audio sample by sample with an autoregressive model of this package.

    Args:
        model: ``SashimiAutoregressive``, ``WaveNetAutoregressive``, ``SampleRNN`` or another ``AutoregressiveModel``.
    """

    def __init__(self, model: AutoregressiveModel) -> None:
        super().__init__()
        self.register_modules(model=model)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        model: AutoregressiveModel | None = None,
        torch_dtype: torch.dtype | None = None,
        dtype: torch.dtype | None = None,
        **hub: Any,
    ) -> "SashimiAutoregressivePipeline":
        """Load a pipeline as :meth:`SashimiPipeline.from_pretrained` does.

        Raises:
            UserError: nothing by that name, a missing or corrupt file, or a pipeline of another kind.
        """
        folder = resolve_pipeline(pretrained_model_name_or_path, **hub)
        pipeline = cls(load_model(folder, AutoregressiveModel, dtype or torch_dtype) if model is None else model)
        pipeline.register_to_config(_name_or_path=str(folder))
        return pipeline

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Write a folder that this class loads, and plain diffusers with ``trust_remote_code=True``.

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
        audio_length_in_s: float | None = None,
        prefix: np.ndarray | Tensor | None = None,
        prefix_rate: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        engine: str = "auto",
        output_type: str = "np",
        return_dict: bool = True,
    ) -> AutoregressivePipelineOutput | tuple[Any, ...]:
        """Generate waveforms.

        Args:
            batch_size: number of waveforms B.
            audio_length_in_s: seconds, prefix included; by default the length the model was trained on.
            prefix: a waveform that the clips begin with, (L,), (1, L) or (B, L); see :meth:`prefix_tokens`.
            prefix_rate: its rate in Hz; None is the model's.
            temperature, top_k, top_p: see :class:`sashimi_diffusion.generation.Sampling`.
            generator: one generator, from which a seed per waveform is drawn, or a list of B of them.
            engine: see :func:`sashimi_diffusion.generation.create_engine`.
            output_type: ``"np"`` for numpy arrays, ``"pt"`` for tensors.
            return_dict: return an :class:`AutoregressivePipelineOutput`, otherwise a tuple.

        Raises:
            UserError: for arguments that do not fit the model or each other.
        """
        if output_type not in ("np", "pt"):
            raise UserError(f"output_type is {output_type!r}, expected 'np' or 'pt'")
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}, expected at least 1")
        tokens = None if prefix is None else self.prefix_tokens(prefix, prefix_rate)
        generators = sample_generators(generator, batch_size)
        length = self.length_in_samples(audio_length_in_s)
        made = generate(self.model, length, batch_size, tokens, temperature, top_k, top_p, generators, engine)
        parts = (self.waveform(made), made.log_likelihood, made.log_probabilities, made.entropies)
        if output_type == "np":
            parts = tuple(part.cpu().numpy() for part in parts)
        output = AutoregressivePipelineOutput(*parts, prefix_length=made.prefix_length)
        return output if return_dict else output.to_tuple()

    def stream(
        self,
        block: int = 1600,
        batch_size: int = 1,
        audio_length_in_s: float | None = None,
        prefix: np.ndarray | Tensor | None = None,
        prefix_rate: int | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        engine: str = "auto",
    ) -> Iterator[tuple[Tensor, Generation]]:
        """Generate waveforms block by block, for ever unless ``audio_length_in_s`` says how long.

        Returns:
            pairs of audio, float32 (B, 1, n), and what it was made of; n is ``block`` but for the prefix and the end.
        """
        tokens = None if prefix is None else self.prefix_tokens(prefix, prefix_rate)
        generators = sample_generators(generator, batch_size)
        length = None if audio_length_in_s is None else self.length_in_samples(audio_length_in_s)
        blocks = stream(
            self.model, length, block, batch_size, tokens, temperature, top_k, top_p, generators, engine
        )  # made now, so that what is wrong shows now
        return ((self.waveform(made), made) for made in blocks)

    def length_in_samples(self, audio_length_in_s: float | None = None) -> int:
        """Samples in so many seconds, at least 1; by default the length the model was trained on.

        Raises:
            UserError: not a number above 0.
        """
        if audio_length_in_s is None:
            return self.model.config.sample_size
        rate = self.model.config.sample_rate
        if not (math.isfinite(audio_length_in_s) and round(audio_length_in_s * rate) >= 1):
            raise UserError(f"cannot generate {audio_length_in_s:g} seconds of audio: ask for a number above 0")
        return round(audio_length_in_s * rate)

    def waveform(self, generation: Generation) -> Tensor:
        """The audio of tokens by the model's own quantization: float32 (B, 1, L)."""
        config = self.model.config
        return decode(generation.tokens, config.quantization, bits_of(config.num_tokens)).unsqueeze(1)

    def prefix_tokens(self, prefix: np.ndarray | Tensor, rate: int | None = None) -> Tensor:
        """A waveform as the model was trained to hear it: at its rate, scaled over itself, quantized: int64 (B, L).

        A resampling is said in a warning.

        Raises:
            UserError: not a mono waveform, empty, not finite, or constant, which gives no scale.
        """
        config = self.model.config
        waveform = torch.as_tensor(np.asarray(prefix, dtype=np.float32))
        waveform = waveform.unsqueeze(0) if waveform.ndim == 1 else waveform
        if waveform.ndim != 2 or not waveform.numel():
            raise UserError(f"the prefix must be a waveform of shape (L,) or (B, L), got {tuple(waveform.shape)}")
        if not waveform.isfinite().all():
            raise UserError("the prefix has samples that are not finite (NaN or infinity)")
        _require_sound(waveform)
        if rate is not None and rate != config.sample_rate:
            warnings.warn(
                f"the prefix is resampled from {rate} Hz to the model's {config.sample_rate} Hz", stacklevel=2
            )
            waveform = torch.from_numpy(resample(waveform.numpy(), rate, config.sample_rate))
        tokens = encode(normalize(waveform, config.quantization), config.quantization, bits_of(config.num_tokens))
        _require_sound(tokens)  # resampling or quantization may have left a single value
        return tokens.to(self.model.device)


def _require_sound(prefix: Tensor) -> None:
    """Raise UserError for a constant row of a waveform or of tokens (B, L)."""
    if (prefix.amax(dim=-1) == prefix.amin(dim=-1)).any():
        raise UserError(
            f"the prefix has no sound (length {prefix.shape[-1]}, a single value throughout): expected at least two "
            "different samples; give a recording with sound, or leave the prefix out"
        )


def bits_of(num_tokens: int) -> int:
    """Bits of a quantization with so many levels.

    Raises:
        UserError: not a power of two.
    """
    if num_tokens < 2 or num_tokens & (num_tokens - 1):
        raise UserError(f"num_tokens is {num_tokens}: audio is quantized to a power of two of levels")
    return num_tokens.bit_length() - 1
