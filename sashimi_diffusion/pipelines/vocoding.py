"""Vocoding of recordings and spectrograms of any length, in one piece or in overlapping windows."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sashimi_diffusion.data.audio import resample
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.pipelines.arrays import checked_rate, floating_tensor
from sashimi_diffusion.pipelines.base import require_count
from sashimi_diffusion.pipelines.mel import checked_mel, log_mel, mel_spectrogram, with_frames
from sashimi_diffusion.pipelines.memory import sampling_memory
from sashimi_diffusion.pipelines.sashimi import SashimiPipeline
from sashimi_diffusion.pipelines.windows import Windows, checked_windows

WINDOW_BYTES = 2**30
"""A window is as long as a network can denoise with about this much memory, at least the training length.

It does not depend on the free memory, so that the audio is the same on every machine."""

_FIXED = ("output_type", "return_dict", "num_waveforms_per_prompt", "batch_size", "audio_length_in_s")


def longest_window(config: Any) -> float:
    """Return the seconds of the longest window by default, which needs ``WINDOW_BYTES``.

    Args:
        config: config of a vocoder.
    """
    return max(config.sample_size, WINDOW_BYTES // max(sampling_memory(config, 1, 1), 1)) / config.sample_rate


def plan_windows(model: Any, length: int, window_in_s: float | None = None) -> Windows:
    """Return the windows in which :func:`vocode` generates a waveform.

    Args:
        model: a vocoder.
        length: samples of the waveform.
        window_in_s: longest window in seconds; None is :func:`longest_window`.

    Raises:
        UserError: the window is no number above zero.
    """
    longest = longest_window(model.config) if window_in_s is None else window_in_s
    return checked_windows(length, longest, None, 1, model.config, model.length_multiple)


def resynthesize(
    pipe: SashimiPipeline,
    audio: Tensor | np.ndarray,
    sample_rate: int | None = None,
    *,
    window_in_s: float | None = None,
    windows_per_batch: int = 1,
    **options: Any,
) -> np.ndarray:
    """Return a recording of any length as a vocoder generates it from its mel spectrogram (copy synthesis).

    Args:
        pipe: a vocoder.
        audio: one recording within [-1, 1], floating-point numbers of shape (L,).
        sample_rate: rate of ``audio`` in Hz, from which it is resampled; None is the rate of the model.
        window_in_s: longest window in seconds, see :func:`plan_windows`.
        windows_per_batch: largest number of windows in one forward pass.
        **options: arguments of the call of the pipeline: ``num_inference_steps``, ``generator``, labels, …

    Returns:
        float32, shape (samples,), exactly as long as the recording at the rate of the model.

    Raises:
        UserError: the pipeline is no vocoder, or the arguments do not fit it.
    """
    transform = log_mel(pipe.model.config)
    audio = floating_tensor("audio", audio, "one recording within [-1, 1] of shape (L,)")
    if audio.ndim != 1 or not len(audio):
        raise UserError(f"audio has shape {tuple(audio.shape)}: expected one recording of shape (L,)")
    if sample_rate not in (None, pipe.model.config.sample_rate):
        samples = np.ascontiguousarray(audio.cpu(), dtype=np.float32)
        audio = resample(samples, checked_rate(sample_rate), pipe.model.config.sample_rate)
    waveform = torch.as_tensor(audio)
    length = len(waveform)
    needed = max(math.ceil(length / transform.hop) * transform.hop, transform.shortest)
    padded = nn.functional.pad(waveform, (0, needed - length))
    mel = mel_spectrogram(pipe.model.config, padded, None, pipe.device)
    return vocode(pipe, mel, length, window_in_s=window_in_s, windows_per_batch=windows_per_batch, **options)


def vocode(
    pipe: SashimiPipeline,
    mel: Tensor | np.ndarray,
    length: int | None = None,
    *,
    window_in_s: float | None = None,
    windows_per_batch: int = 1,
    **options: Any,
) -> np.ndarray:
    """Return the waveform that a vocoder generates from one mel spectrogram of any length, float32 (samples,).

    It is a call of the pipeline with ``window_in_s``, whose result is cut to ``length``.

    Args:
        pipe: a vocoder.
        mel: log-mel spectrogram, (mel_channels, frames) or (1, mel_channels, frames).
        length: samples of the waveform, at most frames · hop, which is the default.
        window_in_s: longest window in seconds, see :func:`plan_windows`.
        windows_per_batch: largest number of windows in one forward pass.
        **options: arguments of the call of the pipeline, see :func:`resynthesize`.

    Raises:
        UserError: the pipeline is no vocoder, or the arguments do not fit it.
    """
    config = pipe.model.config
    for name in _FIXED:
        if name in options:
            raise UserError(f"{name} cannot be given: the result is one array (L,); call the pipeline with mel=...")
    mel = checked_mel(config, mel)
    if len(mel) != 1:
        raise UserError(f"mel has {len(mel)} spectrograms: expected one, (mel_channels, frames)")
    hop = math.prod(config.mel_upsample)
    longest = mel.shape[-1] * hop
    length = longest if length is None else require_count("length", length)
    if length > longest:
        raise UserError(f"length is {length}: expected at most {longest}, the samples of the mel's frames")
    whole = plan_windows(pipe.model, length, window_in_s).length  # frames after the end are used, not repeated ones
    audios: np.ndarray = pipe(
        mel=with_frames(config, mel[..., : whole // hop], whole),
        window_in_s=longest_window(config) if window_in_s is None else window_in_s,
        windows_per_batch=windows_per_batch,
        output_type="np",
        **options,
    ).audios
    return audios[0, 0, :length]
