"""The base class of the diffusion denoisers: conditioning, validation and the signature of ``forward``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusers.utils import BaseOutput
from torch import Tensor, nn

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models.base import WaveformModel
from sashimi_diffusion.models.conditioning import LabelEmbedding, StepEmbedding, validate_conditioning
from sashimi_diffusion.models.layers import pointwise


@dataclass
class DenoiserOutput(BaseOutput):
    """Output of a denoiser.

    Args:
        sample: predicted noise or velocity (the scheduler's ``prediction_type``), (B, out_channels, L).
    """

    sample: Tensor


class Denoiser(WaveformModel):
    """Base class of denoisers: DiffWave's input, conditioning and output around any backbone (2009.09761, section 3).

    A subclass creates the backbone and ``self.output``, and implements :meth:`predict`. Its config has the entries
    ``in_channels``, ``out_channels``, ``waveform_std``, ``num_classes``, ``class_names``, ``num_speakers``,
    ``speaker_names``, ``mel_channels`` and ``mel_upsample``.

    Args:
        in_channels: audio channels of the noisy waveforms.
        width: features of the backbone at the raw rate.
        embedding_sizes: (sines, hidden, dim) of :class:`StepEmbedding`.
        num_classes, num_speakers: numbers of labels, or None without labels of this kind.
        weight_norm: weight normalization of the first linear map.

    Raises:
        UserError: a value of another type or out of its range, or not one name for each label.
    """

    _supports_gradient_checkpointing = True

    def __init__(
        self,
        in_channels: int,
        width: int,
        embedding_sizes: tuple[int, int, int],
        num_classes: int | None,
        num_speakers: int | None,
        weight_norm: bool = True,
    ) -> None:
        super().__init__()
        _require_names(self.config)
        dim = embedding_sizes[-1]
        self.input = nn.Sequential(pointwise(in_channels, width, weight_norm), nn.ReLU())
        self.step_embedding = StepEmbedding(*embedding_sizes)
        self.class_embedding = None if num_classes is None else LabelEmbedding(num_classes, dim)
        self.speaker_embedding = None if num_speakers is None else LabelEmbedding(num_speakers, dim)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        mel: Tensor | None = None,
        speaker_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> DenoiserOutput | tuple[Tensor]:
        """Predict the noise (or the velocity) in ``sample``.

        Args:
            sample: noisy waveforms, (B, in_channels, L), L a multiple of ``length_multiple``.
            timestep: diffusion steps, a number or (B,); may be fractional.
            class_labels: class indices, (B,); None is the null class for all.
            mel: log-mel spectrograms, (B, mel_channels, frames) with frames · hop >= L.
            speaker_labels: speaker indices, (B,); None is the null speaker for all.
            return_dict: return a :class:`DenoiserOutput` instead of a tuple.

        Raises:
            UserError: the shape or the length of ``sample`` does not fit; conditioning is missing, not supported by
                this model or of a wrong shape; labels on the CPU are out of range.
        """
        validate_conditioning(self.config, sample, class_labels, mel, speaker_labels)
        self.require_length(sample.shape[-1], self.length_multiple)
        batch_size = sample.shape[0]
        embedding = self.step_embedding(timestep, batch_size)  # (B, embedding_dim)
        if self.class_embedding is not None:
            embedding = embedding + self.class_embedding(class_labels, batch_size)
        if self.speaker_embedding is not None:
            embedding = embedding + self.speaker_embedding(speaker_labels, batch_size)
        prediction = self.predict(self.input(sample), embedding, mel)
        return DenoiserOutput(sample=prediction) if return_dict else (prediction,)

    def predict(self, x: Tensor, embedding: Tensor, mel: Tensor | None) -> Tensor:
        """Return the prediction (B, out_channels, L).

        Args:
            x: features of the noisy waveforms, (B, width, L).
            embedding: embedded diffusion step and labels, (B, embedding_dim).
            mel: log-mel spectrograms, (B, mel_channels, frames), or None without a vocoder.
        """
        raise NotImplementedError


def embedding_parameters(arguments: Mapping[str, Any]) -> int:
    """Return about how many parameters the embeddings of a denoiser with these arguments have."""
    labels = (arguments["num_classes"] or 0) + (arguments["num_speakers"] or 0)
    rows = arguments["embedding_dim"] + arguments["embedding_sines"]
    return arguments["embedding_hidden"] * rows + arguments["embedding_dim"] * labels


def _require_names(config: Mapping[str, Any]) -> None:
    """Raise UserError if the names of the labels in a config are not as many as the labels."""
    for count, names in (("num_classes", "class_names"), ("num_speakers", "speaker_names")):
        given, number = config.get(names), config.get(count)
        if given is not None and len(given) != number:
            raise UserError(f"{names} has {len(given)} names, {count} is {number}: expected one name for each label")


def output_head(channels: int, out_channels: int, weight_norm: bool = True) -> nn.Sequential:
    """Return the last layers of a denoiser: a linear map, ReLU and a linear map that is initialized to zero."""
    last = pointwise(channels, out_channels, weight_norm=False)
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    return nn.Sequential(pointwise(channels, channels, weight_norm), nn.ReLU(), last)
