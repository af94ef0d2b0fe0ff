"""Given audio in a call of the diffusion pipeline: checks, and what of it the loop and the result keep.

There are four uses. A *variation* begins with the noised audio instead of noise (SDEdit, arXiv 2108.01073). With a
mask (*inpainting*), and at the end of the audio (*continuation*), the samples that are kept replace those of the
network at every noise level, noised to this level (RePaint, arXiv 2201.09865, eq. 8), and in the result. A *vocoder*
with a strength begins with the noised waveform that Griffin-Lim makes of the mel spectrogram.
"""

import math
import numbers
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sashimi_diffusion.arguments import short_form
from sashimi_diffusion.data.levels import peak_problem
from sashimi_diffusion.data.pre_emphasis import pre_emphasize
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.pipelines.arrays import floating_tensor, given_tensor
from sashimi_diffusion.pipelines.griffin_lim import griffin_lim
from sashimi_diffusion.pipelines.mel import log_mel
from sashimi_diffusion.pipelines.schedule import Call, Schedule
from sashimi_diffusion.pipelines.waveforms import normalized
from sashimi_diffusion.schedulers.noise import draw_noise
from sashimi_diffusion.schedulers.noise_paths import Level

USUAL_LEVEL_DB = 10.0
"""Largest usual difference in decibels between the level of given audio and that of the training recordings."""

_FADE_SECONDS = 0.01


class LevelWarning(UserWarning):
    """The level of given audio is far from that of the training recordings."""


@dataclass(frozen=True)
class GivenAudio:
    """The arguments ``audio``, ``mask`` and ``strength`` of a call, checked.

    Args:
        audio: waveforms at the rate of the model, float32 (R, C, L); R is 1 for all waveforms of the call.
        keep: which samples the result keeps, bool (R, C, L), or None for a variation.
        strength: share of the training schedule in (0, 1], or None.
    """

    audio: Tensor
    keep: Tensor | None
    strength: float | None

    @property
    def rows(self) -> int | None:
        """The batch size that the audio means; None for one waveform, which serves a batch of any size."""
        return len(self.audio) if len(self.audio) > 1 else None

    def placed(self, each: int, count: int, length: int) -> "GivenAudio":
        """Return the audio of each waveform of a call, (``count``, C, ``length``); what is missing is not kept.

        Args:
            each: waveforms for each row of the audio.
            count: waveforms of the call.
            length: samples of the call, including those that the network needs and the result does not have.
        """
        missing = length - self.audio.shape[-1]

        def fitted(rows: Tensor) -> Tensor:
            rows = rows.repeat_interleave(each, dim=0) if len(rows) > 1 else rows
            return F.pad(rows, (0, missing)).expand(count, -1, -1)

        return GivenAudio(fitted(self.audio), None if self.keep is None else fitted(self.keep), self.strength)


def given_audio(
    audio: Any, mask: Any, strength: Any, length: int | None, config: Mapping[str, Any], mel: Tensor | None
) -> GivenAudio | None:
    """Return the checked audio of a call, or that of Griffin-Lim for a mel with a strength; None if there is none.

    Args:
        audio, mask, strength: arguments of the pipeline.
        length: samples that the call asks for, or None.
        config: config of the model.
        mel: log-mel spectrograms of a vocoder, (B, mel_channels, frames), or None.

    Raises:
        UserError: an argument is of another type, shape or range, or they contradict each other.
    """
    if audio is None and mel is not None and mask is None and strength is not None:
        share = checked_strength(strength)
        return GivenAudio(griffin_lim(log_mel(config), mel), None, share)
    if audio is None:
        for name, value in (("mask", mask), ("strength", strength)):
            if value is not None:
                raise UserError(f"{name} was given without audio: give the audio as well, or leave {name} out")
        return None
    if mel is not None or config.get("mel_channels") is not None:
        raise UserError("audio was given, but this model is a vocoder, which is given a mel: leave audio out")
    if strength is not None and mask is not None:
        raise UserError("strength and mask were given: strength changes all of the audio, mask keeps a part; give one")
    waveforms = checked_audio(audio, config)
    own = waveforms.shape[-1]
    if length is not None and length < own:
        raise UserError(f"audio has {own} samples, audio_length_in_s asks for {length}: leave audio_length_in_s out")
    if strength is not None:
        if length not in (None, own):
            raise UserError(
                f"strength was given, and audio_length_in_s asks for {length} samples instead of {own}: leave it out; "
                "without strength, the audio is continued"
            )
        return GivenAudio(waveforms, None, checked_strength(strength))
    if mask is None and length in (None, own):
        raise UserError(
            "audio was given, but not what to do: give strength for a variation, mask to fill gaps, or a longer "
            "audio_length_in_s to continue it"
        )
    return GivenAudio(waveforms, checked_mask(mask, waveforms.shape, whole=length in (None, own)), None)


def checked_audio(audio: Any, config: Mapping[str, Any]) -> Tensor:
    """Return given audio as float32 (R, C, L).

    Args:
        audio: floating-point tensor or array of shape (L,), (C, L) or (R, C, L), with full scale 1.
        config: config of the model.

    Raises:
        UserError: another type or shape, another number of channels, values that are not finite, or an impossible level
            (see :mod:`sashimi_diffusion.data.levels`).
    """
    channels = config["in_channels"]
    tensor = floating_tensor("audio", audio, "waveforms with full scale 1")
    shaped = tensor[None, None] if tensor.ndim == 1 else tensor[None] if tensor.ndim == 2 else tensor
    if shaped.ndim != 3 or shaped.shape[1] != channels or shaped.numel() == 0:
        raise UserError(
            f"audio has shape {tuple(tensor.shape)}, expected ({channels}, length) or (batch, {channels}, length)"
        )
    if (problem := peak_problem(float(shaped.abs().amax()))) is not None:
        raise UserError(f"audio has {problem}")
    return shaped


def checked_strength(strength: Any) -> float:
    """Return a strength; raise UserError if it is no number above 0, up to 1."""
    if isinstance(strength, bool) or not isinstance(strength, numbers.Real) or not 0 < float(strength) <= 1:
        raise UserError(f"strength is {short_form(strength)}: expected a number above 0, up to 1")
    return float(strength)


def checked_mask(mask: Any, shape: torch.Size, whole: bool) -> Tensor:
    """Return which samples of the audio are kept, bool (R, C, L).

    Args:
        mask: booleans, or zeros and ones, whose shape broadcasts to that of the audio; None keeps everything.
        shape: of the audio.
        whole: whether the result has the length of the audio.

    Raises:
        UserError: another type, shape or value; a row of the mask keeps nothing, or everything of a result of the same
            length.
    """
    if mask is None:
        return torch.ones(shape, dtype=torch.bool)
    tensor = given_tensor("mask", mask, "booleans, True for samples to keep")
    try:
        wide = tensor.expand(shape)
    except RuntimeError as error:
        raise UserError(
            f"mask has shape {tuple(tensor.shape)}, the audio {tuple(shape)}: expected one value for each sample, "
            f"({shape[-1]},)"
        ) from error
    if not ((wide == 0) | (wide == 1)).all():
        raise UserError("mask has other values than 0 and 1: expected True (or 1) for samples to keep")
    keep = wide.bool()
    for row in keep.flatten(1):
        if not row.any():
            raise UserError("mask keeps nothing: leave audio and mask out to generate from noise")
        if whole and row.all():
            raise UserError("mask keeps everything: set it to False where audio is to be generated")
    return keep


def warn_of_level(given: GivenAudio, config: Mapping[str, Any]) -> None:
    """Warn with a :class:`LevelWarning` if the level of given audio is far from that of the training."""
    notes = [level_note(row, config) for row in given.audio]
    unusual = [note for note in notes if note is not None]
    if unusual:
        warnings.warn(f"the given audio {unusual[0]}", LevelWarning, stacklevel=4)


def level_note(waveform: Tensor, config: Mapping[str, Any]) -> str | None:
    """Return in words that the level of a waveform is far from that of the training recordings, or None.

    The level of the training recordings is ``waveform_std``: their root mean square, after pre-emphasis.

    Args:
        waveform: (C, L).
        config: config of the model.
    """
    rms = float(pre_emphasize(waveform, config.get("pre_emphasis", 0.0)).double().square().mean().sqrt())
    if rms == 0:
        return "is silent"
    difference = 20 * math.log10(rms / config["waveform_std"])
    if abs(difference) <= USUAL_LEVEL_DB:
        return None
    side, factor = ("above", "smaller") if difference > 0 else ("below", "larger")
    return (
        f"is {abs(difference):.0f} dB {side} the level of the training recordings: multiply it by a {factor} number "
        f"first, such as {config['waveform_std'] / rms:.2g}"
    )


class Known:
    """The samples that the result keeps, as the diffusion and as the result see them.

    Args:
        given: placed audio with ``keep``, (B, C, L).
        config: config of the model.
        schedule: the steps of the loop.
        generators: source of noise, one for each waveform.
        device: of the loop.
    """

    def __init__(
        self,
        given: GivenAudio,
        config: Mapping[str, Any],
        schedule: Schedule,
        generators: list[torch.Generator],
        device: torch.device,
    ) -> None:
        if given.keep is None:
            raise ValueError("a variation keeps no samples")
        self._schedule, self._generators = schedule, generators
        self._audio, self._keep = given.audio.to(device), given.keep.to(device)
        self._clean = normalized(self._audio, config)
        self._fade = max(1, round(_FADE_SECONDS * config["sample_rate"]))
        # A sample after pre-emphasis is known if the one before it is kept, too.
        before = F.pad(self._keep[..., :-1], (1, 0), value=True)
        self._known = self._keep & before if config.get("pre_emphasis", 0.0) else self._keep

    def restored(self, latents: Tensor, level: Level, noise: Tensor) -> Tensor:
        """Return noisy waveforms of a level whose known samples are the given ones, with this noise."""
        return torch.where(self._known, level.of(self._clean, noise), latents)

    def before(self, call: Call, latents: Tensor) -> Tensor:
        """Return the noisy waveforms before a call, after the jump back to it if there is one."""
        if call.back_from is None:
            return latents
        self._schedule.begin(call.step)
        levels = self._schedule.levels
        return levels[call.back_from].noisier(latents, levels[call.step], self._noise(latents))

    def after(self, call: Call, latents: Tensor) -> Tensor:
        """Return the noisy waveforms after a call; at the end of a step, the known samples are the given ones."""
        if call.reached is None:
            return latents
        return self.restored(latents, self._schedule.levels[call.reached], self._noise(latents))

    def _noise(self, latents: Tensor) -> Tensor:
        return draw_noise(latents.shape, self._generators, latents.device)

    def joined(self, audios: Tensor) -> Tensor:
        """Return generated waveforms with the given samples where they are kept, without a step at the seams.

        The inverse of pre-emphasis leaves a difference at the end of a gap. It is subtracted within the gap, faded in
        over its last ``_FADE_SECONDS``. Without pre-emphasis there is none.
        """
        length = audios.shape[-1]
        audio, keep = self._audio[..., :length], self._keep[..., :length]
        positions = torch.arange(length, device=audios.device).expand_as(audios)
        following = torch.where(keep, positions, length).flip(-1).cummin(-1).values.flip(-1)  # next kept sample
        preceding = torch.where(keep, positions, -1).cummax(-1).values
        ends = following < length
        difference = (audios - audio).gather(-1, following.clamp(max=length - 1))
        fade = (following - preceding - 1).clamp(min=1, max=self._fade)
        share = (1 - (following - positions) / (fade + 1)).clamp(min=0)
        return torch.where(keep, audio, audios - torch.where(ends, share * difference, 0.0))
