"""The log-mel spectrograms of a vocoder: made from recordings with its settings, and checked before it takes them."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sashimi_diffusion.data.audio import resample
from sashimi_diffusion.data.mel import LogMel, MelSettings
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.pipelines.arrays import checked_rate, floating_tensor


def log_mel(config: Mapping[str, Any]) -> LogMel:
    """Return the transform from waveforms to the spectrograms that a vocoder was trained with.

    Args:
        config: config of the model. Without ``mel_settings``, as in pipelines of earlier versions, the settings are the
            defaults of :class:`.MelSettings`.

    Raises:
        UserError: the model is no vocoder, its settings are impossible, or torchaudio cannot be imported.
    """
    _require_vocoder(config, "a mel spectrogram was asked for")
    settings, hop = config.get("mel_settings"), math.prod(config["mel_upsample"])
    own = {} if settings is None else dict(settings)
    try:
        return LogMel(sample_rate=config["sample_rate"], hop=hop, n_mels=config["mel_channels"], **own)
    except UserError as error:
        if settings is not None:
            raise
        advice = "write those of the training into model/config.json, as mel_settings"
        raise UserError(
            f"this vocoder names no mel settings, and the defaults do not fit ({error}): {advice}"
        ) from error


def mel_description(config: Mapping[str, Any]) -> str:
    """Return all settings of the spectrograms of a vocoder with the config ``config`` in one line."""
    settings = {"mel_channels": config["mel_channels"], "hop": math.prod(config["mel_upsample"])}
    settings |= asdict(MelSettings.of(config.get("mel_settings")))
    return ", ".join(f"{name} {'none' if value is None else value}" for name, value in settings.items())


def mel_spectrogram(
    config: Mapping[str, Any], audio: Tensor | np.ndarray, sample_rate: int | None, device: torch.device
) -> Tensor:
    """Return log-mel spectrograms of recordings, float32 (B, mel_channels, frames), see :meth:`.SashimiPipeline.mel`.

    Args:
        config: config of the model.
        audio: recordings within [-1, 1], floating-point numbers of shape (L,), (B, L) or (B, 1, L).
        sample_rate: rate of ``audio`` in Hz; None is the rate of the model.
        device: where the spectrograms are computed.

    Raises:
        UserError: the model is no vocoder, or the audio has another type or shape, is too short or not finite.
    """
    transform = log_mel(config)
    waveforms = floating_tensor("audio", audio, "recordings within [-1, 1] of shape (L,), (B, L) or (B, 1, L)")
    if waveforms.ndim == 3 and waveforms.shape[1] == 1:
        waveforms = waveforms[:, 0]
    if waveforms.ndim not in (1, 2):
        raise UserError(f"audio has shape {tuple(waveforms.shape)}: expected (L,), (B, L) or (B, 1, L), one channel")
    if not waveforms.numel():
        raise UserError(f"audio has shape {tuple(waveforms.shape)}: expected at least one sample")
    _require_finite("audio", waveforms)
    waveforms = waveforms.reshape(-1, waveforms.shape[-1])
    rate = config["sample_rate"] if sample_rate is None else checked_rate(sample_rate)
    if rate != config["sample_rate"]:
        waveforms = torch.from_numpy(resample(waveforms.cpu().numpy(), rate, config["sample_rate"]))
    return transform.to(device)(waveforms.to(device))


def checked_mel(config: Mapping[str, Any], mel: Any) -> Tensor:
    """Return spectrograms for a vocoder as a tensor, float32 (B, mel_channels, frames).

    Args:
        config: config of the model.
        mel: a tensor or an array of floating-point numbers, (B, mel_channels, frames) or (mel_channels, frames).

    Raises:
        UserError: the model is no vocoder; the spectrograms have another type, shape or order of axes, no frames, or
            values that are not finite or belong to another kind of logarithm.
    """
    _require_vocoder(config, "a mel was given")
    bands = config["mel_channels"]
    values = floating_tensor("mel", mel, f"log-mel spectrograms of shape (B, {bands}, frames)")
    shape = tuple(values.shape)
    if values.ndim == 2:
        values = values[None]
    if values.ndim != 3 or values.shape[1] != bands:
        turned = values.ndim == 3 and values.shape[2] == bands
        advice = "; the axes of frames and bands are exchanged: transpose the last two" if turned else ""
        count = shape[0] if len(shape) == 3 else "B"
        raise UserError(f"mel has shape {shape}, expected ({count}, {bands}, frames) with {bands} bands{advice}")
    if not values.shape[2]:
        raise UserError(f"mel has shape {shape}: expected at least one frame")
    if not values.numel():
        return values
    _require_finite("mel", values)
    _require_range(MelSettings.of(config.get("mel_settings")), float(values.min()), float(values.max()))
    return values


def with_frames(config: Mapping[str, Any], mel: Tensor, length: int) -> Tensor:
    """Return spectrograms (B, mel_channels, frames) that reach ``length`` samples, with the last frame repeated."""
    missing = math.ceil(length / math.prod(config["mel_upsample"])) - mel.shape[-1]
    return torch.nn.functional.pad(mel, (0, max(missing, 0)), mode="replicate")


def _require_vocoder(config: Mapping[str, Any], what: str) -> None:
    if config.get("mel_channels") is None:
        raise UserError(f"{what}, but this model is not a vocoder: leave it out")


def _require_finite(name: str, values: Tensor) -> None:
    wrong = int((~torch.isfinite(values)).sum())
    if wrong:
        raise UserError(f"{name} has {wrong} of {values.numel()} values that are not finite (NaN or infinity)")


def _require_range(settings: MelSettings, low: float, high: float) -> None:
    """Raise UserError if values from ``low`` to ``high`` cannot be logarithms of this kind."""
    least, most = settings.limits
    if low < least or high > most:
        kind = {"natural": "natural logarithms", "log10": "decimal logarithms", "db": "decibels"}[settings.log]
        floor = f"with the floor {settings.floor:g}"
        raise UserError(
            f"mel has values from {low:.4g} to {high:.4g}, and this vocoder takes {kind} {floor}, which are between "
            f"{least:.4g} and {most:.4g}: "
            + ("convert it" if settings.log == "db" else "it may be in dB; convert it, or make it with pipe.mel")
        )
