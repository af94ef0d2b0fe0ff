"""The log-mel spectrograms of a vocoder: made from recordings with its settings, and checked before it takes them."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sashimi_diffusion.arguments import short_form
from sashimi_diffusion.data.audio import resample
from sashimi_diffusion.data.mel import LogMel, MelSettings
from sashimi_diffusion.errors import UserError


def log_mel(config: Mapping[str, Any]) -> LogMel:
    """Return the transform from waveforms to the spectrograms that a vocoder was trained with.

    Args:
        config: config of the model. Without ``mel_settings``, as in pipelines of earlier versions, the settings are the
            defaults of :class:`.MelSettings`.

    Raises:
        UserError: the model is no vocoder, its settings are impossible, or torchaudio cannot be imported.
    """
    _require_vocoder(config, "a mel spectrogram was asked for")
    settings = dict(config.get("mel_settings") or {})
    hop = math.prod(config["mel_upsample"])
    return LogMel(sample_rate=config["sample_rate"], hop=hop, n_mels=config["mel_channels"], **settings)


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
    waveforms = _floating("audio", audio, "recordings within [-1, 1] of shape (L,), (B, L) or (B, 1, L)")
    if waveforms.ndim == 3 and waveforms.shape[1] == 1:
        waveforms = waveforms[:, 0]
    if waveforms.ndim not in (1, 2):
        raise UserError(f"audio has shape {tuple(waveforms.shape)}: expected (L,), (B, L) or (B, 1, L), one channel")
    _require_finite("audio", waveforms)
    waveforms = waveforms.reshape(-1, waveforms.shape[-1])
    if sample_rate not in (None, config["sample_rate"]):
        waveforms = torch.from_numpy(resample(waveforms.numpy(), int(sample_rate or 0), config["sample_rate"]))
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
    values = _floating("mel", mel, f"log-mel spectrograms of shape (B, {bands}, frames)")
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
    if values.is_meta or not values.numel():
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


def _floating(name: str, value: Any, expected: str) -> Tensor:
    """Return a tensor or an array as a float32 tensor where it is; UserError if it has no floating-point numbers."""
    if isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating):
        return torch.from_numpy(np.ascontiguousarray(value, dtype=np.float32))
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.detach().float()
    found = f"numbers of {value.dtype}" if isinstance(value, Tensor | np.ndarray) else short_form(value)
    advice = "; divide 16-bit integers by 32768" if name == "audio" and "int16" in found else ""
    raise UserError(f"{name} is {found}: expected floating-point numbers, {expected}{advice}")


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
