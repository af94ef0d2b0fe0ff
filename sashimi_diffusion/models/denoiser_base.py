"""The base class of the diffusion denoisers: conditioning, validation and the signature of ``forward``."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.utils import BaseOutput
from torch import Tensor, nn

from sashimi_diffusion.arguments import short_form
from sashimi_diffusion.data.mel import MelSettings
from sashimi_diffusion.data.pre_emphasis import pre_emphasize
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models.adapters import LoraAdapters
from sashimi_diffusion.models.base import WaveformModel
from sashimi_diffusion.models.conditioning import (
    LabelEmbedding,
    MelUpsampler,
    StepEmbedding,
    validate_conditioning,
)
from sashimi_diffusion.models.layers import pointwise
from sashimi_diffusion.schedulers.noise_paths import OBJECTIVES


@dataclass
class DenoiserOutput(BaseOutput):
    """Output of a denoiser.

    Args:
        sample: predicted noise or velocity (the scheduler's ``prediction_type``), (B, out_channels, L).
    """

    sample: Tensor


class Denoiser(LoraAdapters, WaveformModel):  # type: ignore[misc]  # a wrapped method is no overriding one
    """Base class of denoisers: DiffWave's input, conditioning and output around any backbone (2009.09761, section 3).

    A subclass creates the backbone and ``self.output``, and implements :meth:`predict`. Its config has the entries
    ``in_channels``, ``out_channels``, ``waveform_std``, ``pre_emphasis``, ``objective``, ``num_classes``,
    ``class_names``, ``num_speakers``, ``speaker_names``, ``mel_channels``, ``mel_upsample``, ``mel_settings``,
    ``mel_mean``, ``mel_std`` and ``mel_whitening``.

    Args:
        in_channels: audio channels of the noisy waveforms.
        width: features of the backbone at the raw rate.
        embedding_sizes: (sines, hidden, dim) of :class:`StepEmbedding`.
        num_classes, num_speakers: numbers of labels, or None without labels of this kind.
        weight_norm: weight normalization of the first linear map.

    Raises:
        UserError: a value of another type or out of its range, an unknown objective, not one name for each label, or
            settings of a mel spectrogram that are unknown or do not fit the sample rate.
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
        _require_mel_settings(self.config)
        _require_objective(self.config)
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
        if mel is not None:
            mel = (mel - self.config.mel_mean) / self.config.mel_std
        prediction = self.predict(self.input(sample), embedding, mel)
        return DenoiserOutput(sample=prediction) if return_dict else (prediction,)

    def predict(self, x: Tensor, embedding: Tensor, mel: Tensor | None) -> Tensor:
        """Return the prediction (B, out_channels, L).

        Args:
            x: features of the noisy waveforms, (B, width, L).
            embedding: embedded diffusion step and labels, (B, embedding_dim).
            mel: normalized log-mel spectrograms, (B, mel_channels, frames), or None without a vocoder.
        """
        raise NotImplementedError

    def normalize(self, waveform: Tensor) -> Tensor:
        """Return recordings (..., L) as the diffusion sees them: after pre-emphasis, divided by ``waveform_std``."""
        return pre_emphasize(waveform, self.config.pre_emphasis) / self.config.waveform_std

    def parts_without_adapters(self) -> list[str]:
        """Return the names of the upsamplers of mel spectrograms."""
        return [name for name, part in self.named_modules() if isinstance(part, MelUpsampler)]

    @torch.no_grad()
    def add_speakers(self, names: Sequence[str], rows: Tensor | None = None) -> None:
        """Add speakers after the known ones; the names are also in the config.

        Args:
            names: names that the network does not know yet.
            rows: their embeddings, (names, dim); None is the mean of the known speakers for each.

        Raises:
            UserError: the names are no texts, the network has no speakers, knows one of them, or the embeddings have
                another width.
        """
        _require_texts(names)
        old = self._speaker_table()
        known = list(self.config.speaker_names or map(str, range(self.config.num_speakers)))
        for name in names:
            if name in known:
                raise UserError(f"the network already has the speaker {short_form(name)}: choose another name")
            known.append(name)
        if rows is None:
            rows = old[:-1].mean(dim=0, keepdim=True).expand(len(names), -1)
        if rows.shape != (len(names), old.shape[1]):
            raise UserError(f"{len(names)} speakers have embeddings of shape {tuple(rows.shape)}: expected {old.shape}")
        embedding = LabelEmbedding(len(known), old.shape[1]).to(old)
        embedding.weight.copy_(torch.cat([old[:-1], rows.to(old), old[-1:]]))
        self.speaker_embedding = embedding
        self.register_to_config(num_speakers=len(known), speaker_names=known)

    def speaker_rows(self, names: Sequence[str]) -> Tensor:
        """Return the embeddings of speakers, (names, dim).

        Raises:
            UserError: the names are no texts, or the network has no such speaker.
        """
        _require_texts(names)
        table, known = self._speaker_table(), list(self.config.speaker_names or ())
        for name in names:
            if name not in known:
                raise UserError(f"the network has no speaker {short_form(name)}: it has {', '.join(map(str, known))}")
        return table[[known.index(name) for name in names]]

    def _speaker_table(self) -> Tensor:
        if self.speaker_embedding is None:
            raise UserError("this network has no speakers: it was trained without data.speakers")
        return self.speaker_embedding.weight.detach()


def embedding_parameters(arguments: Mapping[str, Any]) -> int:
    """Return about how many parameters the embeddings of a denoiser with these arguments have."""
    labels = (arguments["num_classes"] or 0) + (arguments["num_speakers"] or 0)
    rows = arguments["embedding_dim"] + arguments["embedding_sines"]
    return arguments["embedding_hidden"] * rows + arguments["embedding_dim"] * labels


def _require_texts(names: Any) -> None:
    """Raise UserError if the names of speakers are no sequence of texts that are not empty."""
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise UserError(f"names of speakers: expected a list of texts, got {short_form(names)}")
    for name in names:
        if not isinstance(name, str) or not name:
            raise UserError(f"names of speakers: expected texts that are not empty, got {short_form(name)}")


def _require_names(config: Mapping[str, Any]) -> None:
    """Raise UserError if the names of the labels in a config are not as many as the labels, or not different."""
    for count, names in (("num_classes", "class_names"), ("num_speakers", "speaker_names")):
        given, number = config.get(names), config.get(count)
        if given is not None and len(given) != number:
            raise UserError(f"{names} has {len(given)} names, {count} is {number}: expected one name for each label")
        if given is not None and len({str(name) for name in given}) != number:
            raise UserError(f"{names} has a name twice: expected another name for each label")


def _require_mel_settings(config: Mapping[str, Any]) -> None:
    """Raise UserError if the settings of the mel spectrogram in a config are invalid, or are for no vocoder."""
    settings = config.get("mel_settings")
    if config.get("mel_channels") is None:
        if settings is not None:
            raise UserError("mel_settings were given, but mel_channels is null: a network without mels has no settings")
        if config.get("mel_whitening"):
            raise UserError("mel_whitening is true, but mel_channels is null: a network without mels has no envelope")
    if config.get("mel_whitening") and config.get("pre_emphasis"):
        raise UserError(
            f"mel_whitening is true and pre_emphasis is {config['pre_emphasis']}: expected one of them, because both "
            "change the spectral envelope"
        )
    if settings is None:
        return
    MelSettings.of(settings).check(config["sample_rate"], math.prod(config["mel_upsample"]))


def _require_objective(config: Mapping[str, Any]) -> None:
    """Raise UserError if the training objective in a config is unknown."""
    if config.get("objective", "diffusion") not in OBJECTIVES:
        raise UserError(f"objective is {short_form(config['objective'])}: expected one of {', '.join(OBJECTIVES)}")


def output_head(channels: int, out_channels: int, weight_norm: bool = True) -> nn.Sequential:
    """Return the last layers of a denoiser: a linear map, ReLU and a linear map that is initialized to zero."""
    last = pointwise(channels, out_channels, weight_norm=False)
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    return nn.Sequential(pointwise(channels, channels, weight_norm), nn.ReLU(), last)
