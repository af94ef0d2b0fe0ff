"""Measure by how much one step of a denoiser beats a Wiener filter, for each band of 1 kHz.

    python -m sashimi_diffusion.benchmarks.denoising_gain --pipeline sashimi-digits data.path=recordings

Held-out recordings of the config get the noise of a few timesteps. The denoiser estimates the clean recording in one
step, and so does a filter that knows the smooth spectrum of the clean recording: |X|² / (|X|² + noise), with |X|²
averaged over 500 Hz and 3 frames. A model that only knows the envelope of the sound has a gain of about 0 dB; a model
that knows the harmonics has more. The gain of the upper bands appears late in training, so it is an early measure of
what the validation loss hardly shows.
"""

import math
import sys
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from sashimi_diffusion.benchmarks.held_out import held_out, held_out_parser
from sashimi_diffusion.command_line import positive_numbers, run
from sashimi_diffusion.schedulers.noise_paths import noise_path, signal_and_deviation
from sashimi_diffusion.ssm import frozen
from sashimi_diffusion.terminal import say
from sashimi_diffusion.training.diffusion.batches import Batch

BAND = 1000
"""Width of a band in Hz."""
_SMOOTHED_HZ, _SMOOTHED_FRAMES = 500, 3
_WINDOW_SECONDS = 0.032


def main() -> int:
    """Print the table and return the exit code."""
    return run(_measure)


def _measure() -> None:
    parser = held_out_parser(__doc__)
    parser.add_argument(
        "--timesteps", type=positive_numbers, default=[20, 60, 100], metavar="NUMBERS", help="default: 20,60,100"
    )
    options = parser.parse_args()
    pipe, batch = held_out(options)
    bands = range(pipe.model.config.sample_rate // 2 // BAND)
    say(
        "| timestep | "
        + " | ".join(f"{band}-{band + 1} kHz" for band in bands)
        + " |\n|---"
        + "|---" * len(bands)
        + "|"
    )
    for timestep in options.timesteps:
        gains = denoising_gains(pipe, batch, timestep)
        say(f"| {timestep} | " + " | ".join(f"{gain:+.2f} dB" for gain in gains) + " |")


@torch.no_grad()
def denoising_gains(pipe: Any, batch: Batch, timestep: int) -> list[float]:
    """Return the gain over the Wiener filter in each band of ``BAND`` Hz, in dB.

    Args:
        pipe: a diffusion pipeline with DiffWaveScheduler.
        batch: clean waveforms as the denoiser sees them, with noise and labels; its timesteps are replaced.
        timestep: the diffusion step whose noise is added.
    """
    timesteps = torch.full_like(batch.timesteps, timestep)
    noisy = pipe.scheduler.add_noise(batch.waveform, batch.noise, timesteps)
    path = noise_path(pipe.scheduler)
    level = path.level(timesteps[:1]).float()
    with frozen(pipe.model):
        output = pipe.model(noisy, timesteps, class_labels=batch.labels, speaker_labels=batch.speakers).sample
    estimate, signal = path.clean(output, noisy, level), signal_and_deviation(level).signal
    rate = pipe.model.config.sample_rate
    window = torch.hann_window(2 ** round(math.log2(_WINDOW_SECONDS * rate)))
    clean, noisy, estimate = (_spectrogram(one, window) for one in (batch.waveform, noisy / signal, estimate))
    filtered = noisy * wiener_gains(clean, level.item() ** 2 * window.square().sum().item(), rate)
    errors = [(one - clean).abs().square().mean(dim=(0, 2)) for one in (filtered, estimate)]  # (frequencies,) each
    bins_per_band = BAND * len(window) // rate
    sums = [error[: rate // 2 // BAND * bins_per_band].unflatten(0, (-1, bins_per_band)).sum(1) for error in errors]
    return [10 * math.log10(filter_error / own) for filter_error, own in zip(*map(Tensor.tolist, sums), strict=True)]


def wiener_gains(clean: Tensor, noise_power: float, rate: int) -> Tensor:
    """Return the gains of the filter that knows the smooth spectrum of the clean waveforms.

    Args:
        clean: spectrograms of the clean waveforms, complex (B, frequencies, frames).
        noise_power: mean power of the noise in each bin.
        rate: sample rate in Hz.
    """
    power = clean.abs().square().unsqueeze(1)
    bins = 2 * round(_SMOOTHED_HZ / (rate / 2) * power.shape[2] / 2) + 1
    kernel = torch.ones(1, 1, bins, _SMOOTHED_FRAMES)
    padding = (bins // 2, _SMOOTHED_FRAMES // 2)
    counts = F.conv2d(torch.ones_like(power), kernel, padding=padding)
    smooth = (F.conv2d(power, kernel, padding=padding) / counts).squeeze(1)
    return smooth / (smooth + noise_power)


def _spectrogram(waveform: Tensor, window: Tensor) -> Tensor:
    return torch.stft(waveform[:, 0], len(window), len(window) // 4, window=window, return_complex=True)


if __name__ == "__main__":
    sys.exit(main())
