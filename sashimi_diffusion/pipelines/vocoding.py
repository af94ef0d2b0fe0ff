"""Vocoding of recordings and spectrograms of any length, in one piece or in overlapping windows."""

import math
import numbers
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.configuration_utils import FrozenDict
from torch import Tensor, nn

from sashimi_diffusion.arguments import short_form
from sashimi_diffusion.data.audio import resample
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models.denoiser_base import DenoiserOutput
from sashimi_diffusion.pipelines.mel import checked_mel, log_mel, mel_spectrogram, with_frames
from sashimi_diffusion.pipelines.memory import sampling_memory
from sashimi_diffusion.pipelines.sashimi import SashimiPipeline

WINDOW_BYTES = 2**30
"""A window is as long as a network can denoise with about this much memory, at least the training length.

It does not depend on the free memory, so that the audio is the same on every machine."""
OVERLAP_SECONDS = 0.25
"""Overlap of neighboring windows, at most half of a window; it is rounded up to whole frames."""


@dataclass(frozen=True)
class Windows:
    """Windows of equal length that cover a waveform.

    Args:
        size: samples in a window.
        overlap: samples that neighboring windows have in common; 0 for one window.
        count: number of windows.
    """

    size: int
    overlap: int
    count: int

    @property
    def total(self) -> int:
        """Samples that all windows cover."""
        return self.count * (self.size - self.overlap) + self.overlap

    @property
    def starts(self) -> range:
        """The first sample of each window."""
        return range(0, self.count * (self.size - self.overlap), self.size - self.overlap)


def plan_windows(model: Any, length: int, window_in_s: float | None = None) -> Windows:
    """Return the windows for a waveform: one if it fits, otherwise as few as possible of equal length.

    Args:
        model: a vocoder.
        length: samples of the waveform.
        window_in_s: longest window in seconds; None is the window that needs ``WINDOW_BYTES``.

    Raises:
        UserError: the window is no number above zero.
    """
    config = model.config
    unit = math.lcm(math.prod(config.mel_upsample), model.length_multiple)  # whole frames that the network takes
    if window_in_s is None:
        longest = max(config.sample_size, WINDOW_BYTES // max(sampling_memory(config, 1, 1), 1))
    else:
        longest = _window_samples(window_in_s, config.sample_rate)
    longest = max(longest // unit, 2) * unit
    needed = math.ceil(length / unit) * unit
    if needed <= longest:
        return Windows(needed, 0, 1)
    overlap = min(math.ceil(OVERLAP_SECONDS * config.sample_rate / unit), longest // unit // 2) * unit
    count = math.ceil((needed - overlap) / (longest - overlap))
    size = overlap + math.ceil((needed - overlap) / (count * unit)) * unit
    return Windows(size, overlap, count)


class WindowedDenoiser(nn.Module):
    """A denoiser that predicts long waveforms in overlapping windows, with the memory for a few of them.

    In an overlap, the predictions of both windows are mixed with linear weights. All windows are denoised together, so
    a scheduler sees one waveform, and every window continues the waveform of its neighbors.

    Args:
        model: a vocoder.
        windows: the windows; the waveforms in :meth:`forward` have the length ``windows.total``.
        batch_size: windows in one forward pass of ``model``.
    """

    def __init__(self, model: Any, windows: Windows, batch_size: int = 1) -> None:
        super().__init__()
        self.model, self.windows, self.batch_size = model, windows, batch_size
        # Without features, so that the pipeline does not expect the memory that the whole waveform would need.
        self.config: Any = FrozenDict({**model.config, "d_model": 0, "residual_channels": 0})
        self.length_multiple: int = model.length_multiple
        weights = torch.ones(windows.count, windows.size)
        ramp = (torch.arange(windows.overlap) + 0.5) / max(windows.overlap, 1)
        weights[1:, : windows.overlap] = ramp
        weights[:-1, windows.size - windows.overlap :] = ramp.flip(0)
        self.register_buffer("weights", weights, persistent=False)  # (count, size)

    weights: Tensor

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model."""
        return self.model.dtype

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.model.device

    def forward(self, sample: Tensor, timestep: Tensor, mel: Tensor, **labels: Tensor) -> DenoiserOutput:
        """Return the prediction (B, C, total).

        Args:
            sample: noisy waveforms, (B, C, total).
            timestep: diffusion steps, (B,).
            mel: log-mel spectrograms, (B, mel_channels, frames) with frames · hop = total.
            **labels: labels by name, (B,).
        """
        size, hop = self.windows.size, math.prod(self.config.mel_upsample)
        prediction = torch.zeros_like(sample)
        starts = list(self.windows.starts)
        for first in range(0, len(starts), self.batch_size):
            group = starts[first : first + self.batch_size]
            repeated = {name: own.repeat(len(group)) for name, own in {**labels, "timestep": timestep}.items()}
            windows = self.model(
                sample=torch.cat([sample[..., start : start + size] for start in group]),
                mel=torch.cat([mel[..., start // hop : (start + size) // hop] for start in group]),
                **repeated,
            ).sample.chunk(len(group))
            for number, (start, window) in enumerate(zip(group, windows, strict=True), start=first):
                prediction[..., start : start + size] += window * self.weights[number].to(window)
        return DenoiserOutput(sample=prediction)


def resynthesize(
    pipe: SashimiPipeline,
    audio: Tensor | np.ndarray,
    sample_rate: int | None = None,
    *,
    window_in_s: float | None = None,
    batch_size: int = 1,
    **options: Any,
) -> np.ndarray:
    """Return a recording of any length as a vocoder generates it from its mel spectrogram (copy synthesis).

    Args:
        pipe: a vocoder.
        audio: one recording within [-1, 1], floating-point numbers of shape (L,).
        sample_rate: rate of ``audio`` in Hz, from which it is resampled; None is the rate of the model.
        window_in_s: longest window in seconds, see :func:`plan_windows`.
        batch_size: windows in one forward pass.
        **options: arguments of the call of the pipeline: ``num_inference_steps``, ``generator``, labels, …

    Returns:
        float32, shape (samples,), exactly as long as the recording at the rate of the model.

    Raises:
        UserError: the pipeline is no vocoder, or the arguments do not fit it.
    """
    transform = log_mel(pipe.model.config)
    if audio.ndim != 1:
        raise UserError(f"audio has shape {tuple(audio.shape)}: expected one recording of shape (L,)")
    if sample_rate not in (None, pipe.model.config.sample_rate):
        samples = np.ascontiguousarray(audio, dtype=np.float32)
        audio = resample(samples, int(sample_rate or 0), pipe.model.config.sample_rate)
    waveform = torch.as_tensor(audio)
    length = len(waveform)
    needed = max(math.ceil(length / transform.hop) * transform.hop, transform.shortest)
    padded = nn.functional.pad(waveform, (0, needed - length))
    mel = mel_spectrogram(pipe.model.config, padded, None, pipe.device)
    return vocode(pipe, mel, length, window_in_s=window_in_s, batch_size=batch_size, **options)


def vocode(
    pipe: SashimiPipeline,
    mel: Tensor | np.ndarray,
    length: int | None = None,
    *,
    window_in_s: float | None = None,
    batch_size: int = 1,
    **options: Any,
) -> np.ndarray:
    """Return the waveform that a vocoder generates from one mel spectrogram of any length, float32 (samples,).

    Args:
        pipe: a vocoder.
        mel: log-mel spectrogram, (mel_channels, frames) or (1, mel_channels, frames).
        length: samples of the waveform, at most frames · hop, which is the default.
        window_in_s: longest window in seconds, see :func:`plan_windows`.
        batch_size: windows in one forward pass.
        **options: arguments of the call of the pipeline, see :func:`resynthesize`.

    Raises:
        UserError: the pipeline is no vocoder, or the arguments do not fit it.
    """
    model = pipe.model
    mel = checked_mel(model.config, mel)
    if len(mel) != 1:
        raise UserError(f"mel has {len(mel)} spectrograms: expected one, (mel_channels, frames)")
    hop = math.prod(model.config.mel_upsample)
    length = mel.shape[-1] * hop if length is None else length
    windows = plan_windows(model, length, window_in_s)
    mel = with_frames(model.config, mel[..., : windows.total // hop], windows.total)
    if windows.count > 1:
        progress = getattr(pipe, "_progress_bar_config", {})
        windowed: Any = WindowedDenoiser(model, windows, batch_size)
        pipe = SashimiPipeline(windowed, pipe.scheduler, pipe.config.guidance_scale)
        pipe.set_progress_bar_config(**progress)
        pipe.cuda_graph = False  # a recording of all windows would be long, and each window is long enough by itself
    audios: np.ndarray = pipe(mel=mel, output_type="np", **options).audios
    return audios[0, 0, :length]


def _window_samples(seconds: Any, rate: int) -> int:
    number = isinstance(seconds, numbers.Real) and not isinstance(seconds, bool)
    if not (number and math.isfinite(seconds) and seconds > 0):
        raise UserError(f"window_in_s is {short_form(seconds)}: expected a number of seconds above 0")
    return math.ceil(seconds * rate)
