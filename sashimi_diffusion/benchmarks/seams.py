"""Measure how inaudible the seams of inpainting are, against the recordings at the same places.

    python -m sashimi_diffusion.benchmarks.seams --pipeline sashimi-digits data.path=recordings

A tenth of a second at the loudest place of held-out recordings is generated again, with the labels of the recording or
without. Each row is a setting of the sampler. At both seams of each gap, three numbers are measured:

- level: the difference of the levels in the 10 ms before and after the seam, absolute, in dB;
- spectrum: the difference of the log-spectra of the 16 ms before and after, root mean square over frequencies, in dB;
- click: the second difference of the samples at the seam, relative to its root mean square within 10 ms, in dB.

Large numbers are steps that can be heard; those of the recordings themselves are the aim. The gap is the level of the
generated part relative to that of the recording there, in dB: below 0, sounds that should go on fade.
"""

import sys
from typing import Any, NamedTuple

import numpy as np
import torch

from sashimi_diffusion.benchmarks.held_out import held_out, held_out_parser
from sashimi_diffusion.command_line import run
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.schedulers import create_scheduler
from sashimi_diffusion.terminal import say
from sashimi_diffusion.training.diffusion.batches import Batch

GAP_SECONDS = 0.1
_UNLABELED = "none"
_ROWS = [f"dpmsolver++-sde-karras:{row}" for row in ("20:0:none", "20:0:1", "20:1:1", "40:0:1", "10:3:1", "20:4:1")]


class Setting(NamedTuple):
    """A row of the table: name of the scheduler, sampling steps, jumps, and guidance scale or "none" for no labels."""

    scheduler: str
    steps: int
    jumps: int
    guidance: str


def setting(text: str) -> Setting:
    """Return the setting of an option, for its ``type``."""
    parts = text.split(":")
    if len(parts) != 4 or not all(number.isdecimal() for number in parts[1:3]):
        raise UserError(f"{text!r}: expected SCHEDULER:STEPS:JUMPS:GUIDANCE, such as {_ROWS[0]}")
    return Setting(parts[0], int(parts[1]), int(parts[2]), parts[3])


def main() -> int:
    """Print the table and return the exit code."""
    return run(_measure)


def _measure() -> None:
    parser = held_out_parser(__doc__)
    parser.add_argument(
        "--rows", type=setting, nargs="+", default=list(map(setting, _ROWS)), metavar="SCHEDULER:STEPS:JUMPS:GUIDANCE"
    )
    options = parser.parse_args()
    pipe, batch = held_out(options)
    pipe.set_progress_bar_config(disable=True)
    if pipe.model.config.get("pre_emphasis", 0.0):
        raise UserError("the recordings of a model with pre-emphasis cannot be restored here: choose another pipeline")
    real = batch.waveform * pipe.model.config.waveform_std  # (B, C, L)
    gaps = loudest(real.mean(1).numpy(), round(GAP_SECONDS * pipe.model.config.sample_rate))
    columns = ["sampler", "steps", "jumps", "guidance", "calls", "level", "spectrum", "click", "gap"]
    say(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    say(f"| recordings | | | | | {_row(measured(real.numpy(), real.numpy(), gaps, pipe))} |")
    for row in options.rows:
        audios, calls = inpainted(pipe, batch, real, gaps, row)
        say(f"| {' | '.join(map(str, row))} | {calls} | {_row(measured(audios, real.numpy(), gaps, pipe))} |")


def loudest(waveforms: np.ndarray, length: int) -> list[slice]:
    """Return where the ``length`` loudest samples of each waveform (B, L) are, away from its ends."""
    power = np.cumsum(np.pad(np.square(waveforms, dtype=np.float64), ((0, 0), (1, 0))), axis=1)
    energy = power[:, length:] - power[:, :-length]
    starts = length + energy[:, length : -length or None].argmax(axis=1)
    return [slice(start, start + length) for start in starts.tolist()]


def inpainted(pipe: Any, batch: Batch, real: torch.Tensor, gaps: list[slice], row: Setting) -> tuple[np.ndarray, int]:
    """Return the recordings with generated gaps, (B, C, L), and the number of network calls."""
    mask = torch.ones(real.shape, dtype=torch.bool)
    for keep, gap in zip(mask, gaps, strict=True):
        keep[..., gap] = False
    unlabeled = row.guidance == _UNLABELED
    pipe.scheduler = create_scheduler(row.scheduler, pipe.scheduler.config)
    audios = pipe(
        audio=real,
        mask=mask,
        num_inference_steps=row.steps,
        jumps=row.jumps,
        class_labels=None if unlabeled else batch.labels,
        speaker_labels=None if unlabeled else batch.speakers,
        guidance_scale=None if unlabeled else float(row.guidance),
        generator=torch.Generator().manual_seed(0),
    ).audios
    return audios, pipe.num_timesteps


def measured(audios: np.ndarray, real: np.ndarray, gaps: list[slice], pipe: Any) -> list[list[float]]:
    """Return level, spectrum and click of every seam, and the level of every gap."""
    rate = pipe.model.config.sample_rate
    seams: list[tuple[float, float, float]] = []
    levels = []
    for waveform, recording, gap in zip(audios.mean(1), real.mean(1), gaps, strict=True):
        seams += [seam(waveform.astype(np.float64), place, rate) for place in (gap.start, gap.stop)]
        levels.append(_level(waveform[gap]) - _level(recording[gap]))
    return [*map(list, zip(*seams, strict=True)), levels]


def seam(waveform: np.ndarray, place: int, rate: int) -> tuple[float, float, float]:
    """Return the step in level, the step in log-spectrum and the click, in dB, between two samples.

    Args:
        waveform: (L,).
        place: index of the sample after the seam.
        rate: sample rate in Hz.
    """
    short, long = rate // 100, round(0.016 * rate)
    level = abs(_level(waveform[place : place + short]) - _level(waveform[place - short : place]))
    window = np.hanning(long)
    sides = [waveform[place - long : place], waveform[place : place + long]]
    spectra = np.stack([20 * np.log10(np.abs(np.fft.rfft(window * side)) + 1e-9) for side in sides])
    spectra = np.maximum(spectra, spectra.max() - 50)
    spectrum = float(np.sqrt(np.square(spectra[0] - spectra[1]).mean()))
    second = np.abs(np.diff(waveform[place - short - 1 : place + short + 1], n=2))
    middle = len(second) // 2
    click = 20 * np.log10(max(second[middle - 1 : middle + 1].max() / np.sqrt(np.square(second).mean()), 0.03))
    return level, spectrum, float(click)


def _level(samples: np.ndarray) -> float:
    return float(10 * np.log10(np.square(samples, dtype=np.float64).mean() + 1e-12))


def _row(values: list[list[float]]) -> str:
    """Return the mean of each list with its standard error."""
    return " | ".join(f"{np.mean(own):.1f} ± {np.std(own) / len(own) ** 0.5:.1f}" for own in values)


if __name__ == "__main__":
    sys.exit(main())
