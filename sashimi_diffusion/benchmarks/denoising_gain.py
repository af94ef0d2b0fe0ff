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

from sashimi_diffusion.command_line import Parser, positive, positive_numbers, run
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.pipelines import SashimiPipeline
from sashimi_diffusion.ssm import frozen
from sashimi_diffusion.terminal import say
from sashimi_diffusion.training.config import load_config
from sashimi_diffusion.training.diffusion.batches import Batch, BatchSource
from sashimi_diffusion.training.diffusion.config import DiffusionConfig
from sashimi_diffusion.training.examples import spread_evenly
from sashimi_diffusion.training.packaged_configs import CONFIGS, config_file
from sashimi_diffusion.training.splits import open_split

BAND = 1000
"""Width of a band in Hz."""
_SMOOTHED_HZ, _SMOOTHED_FRAMES = 500, 3
_WINDOW_SECONDS = 0.032


def main() -> int:
    """Print the table and return the exit code."""
    return run(_measure)


def _measure() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--pipeline", default="sashimi-digits", help="a folder or the name of a bundled pipeline")
    parser.add_argument("--config", default="digits-small", help="config of the run, which says what is held out")
    parser.add_argument(
        "--timesteps", type=positive_numbers, default=[20, 60, 100], metavar="NUMBERS", help="default: 20,60,100"
    )
    parser.add_argument("--clips", type=positive, default=30, help="number of held-out recordings (default: 30)")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings of the config, such as data.path")
    options = parser.parse_args()
    config = load_config(DiffusionConfig, config_file(options.config, CONFIGS / "diffusion"), options.overrides)
    pipe = SashimiPipeline.from_pretrained(options.pipeline)
    batch = held_out(pipe, config, options.clips)
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


def held_out(pipe: Any, config: DiffusionConfig, clips: int) -> Batch:
    """Return held-out recordings as the denoiser of ``pipe`` sees them, with their noise and labels."""
    model, data = pipe.model, config.data
    recordings = open_split(data, "validation", data.length, False, data.speakers, True, config.channels)
    recordings.normalize_rms = data.normalize_rms
    for names, own in (("class_names", recordings.class_names), ("speaker_names", recordings.speaker_names)):
        if model.config.get(names) is not None and list(model.config.get(names)) != own:
            raise UserError(f"the {names} of the pipeline are {model.config.get(names)}, those of the recordings {own}")
    source = BatchSource(
        recordings, config, model.normalize, model.config.num_classes, num_speakers=model.config.num_speakers
    )
    return source.validation_batch(spread_evenly(len(recordings), clips))


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
    conditioning = {"class_labels": batch.labels, "speaker_labels": batch.speakers}
    with frozen(pipe.model):
        predicted = pipe.model(noisy, timesteps, **conditioning).sample
    abar = pipe.scheduler.noise_levels(timesteps[:1]).item()
    signal, noise = math.sqrt(abar), math.sqrt(1 - abar)
    if pipe.scheduler.config.prediction_type == "v_prediction":
        estimate = signal * noisy - noise * predicted
    else:
        estimate = (noisy - noise * predicted) / signal
    rate = pipe.model.config.sample_rate
    window = torch.hann_window(2 ** round(math.log2(_WINDOW_SECONDS * rate)))
    clean, noisy, estimate = (_spectrogram(one, window) for one in (batch.waveform, noisy / signal, estimate))
    filtered = noisy * wiener_gains(clean, (noise / signal) ** 2 * window.square().sum().item(), rate)
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
