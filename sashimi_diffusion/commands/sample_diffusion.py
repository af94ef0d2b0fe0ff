"""What ``sashimi-sample`` does with a diffusion pipeline."""

import argparse
import difflib
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from sashimi_diffusion.commands.cli import writing_to
from sashimi_diffusion.commands.memory import explained_exhaustion, peak_memory, require_memory, sampling_memory
from sashimi_diffusion.commands.output import SHEET_CLIPS, prepare_folder, share_of_batches, write_record
from sashimi_diffusion.data.audio import write_audio
from sashimi_diffusion.data.pictures import contact_sheet
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.pipelines import SashimiPipeline, hash_pipeline, sample_seeds
from sashimi_diffusion.schedulers import create_scheduler


@dataclass
class Sample:
    """One waveform to generate: where it goes, what makes it, and afterwards how much of it was clipped."""

    index: int
    file: str
    seed: int
    label: int | None
    class_name: str | None
    clip_ratio: float = 0.0


def sample_diffusion(
    options: argparse.Namespace, folder: Path, device: torch.device, dtype: torch.dtype, state: PartialState
) -> None:
    """Generate what the options ask for, split over the processes of ``accelerate launch``.

    Raises:
        UserError: the options do not fit the pipeline or the machine (found before anything is generated), or memory or
            disk space run out.
    """
    pipe = load_pipeline(folder, options, dtype).to(device)
    length = pipe.length_in_samples(options.seconds)
    samples = plan_samples(options, pipe.model.config)
    forward_size = min(options.batch_size, len(samples)) * (1 if options.guidance_scale in (None, 1) else 2)
    require_memory(sampling_memory(pipe.model.config, forward_size, length), device)
    prepare_folder(options.out, 2 * length * len(samples))

    mine = share_of_batches(samples, options.batch_size, state)
    started = time.perf_counter()
    pictured = []
    for number, batch in enumerate(mine, start=1):
        pipe.set_progress_bar_config(desc=f"batch {number}/{len(mine)}", disable=not state.is_main_process)
        for one, waveform in zip(batch, generate(pipe, options, batch), strict=True):
            one.clip_ratio = write_audio(options.out / one.file, waveform, pipe.model.config.sample_rate)
            if one.index < SHEET_CLIPS:
                pictured.append((one.index, waveform.mean(axis=0)))
    made = sorted(gather_object([one for batch in mine for one in batch]), key=lambda one: one.index)
    pictured = [waveform for _, waveform in sorted(gather_object(pictured), key=lambda pair: pair[0])]
    elapsed = time.perf_counter() - started

    if state.is_main_process:
        with writing_to(options.out):
            titles = [Path(one.file).stem for one in made[: len(pictured)]]
            contact_sheet(pictured, pipe.model.config.sample_rate, titles).save(options.out / "contact_sheet.png")
            write_record(options.out, make_record(options, folder, pipe, made))
        print(summary(options.out, made, elapsed, length / pipe.model.config.sample_rate, peak_memory(device)))
    if state.num_processes > 1:
        state.destroy_process_group()


def load_pipeline(folder: Path, options: argparse.Namespace, dtype: torch.dtype) -> SashimiPipeline:
    """The pipeline with the sampler that is asked for."""
    pipe = SashimiPipeline.from_pretrained(folder, torch_dtype=dtype)
    if pipe.model.config.get("mel_channels") is not None:
        raise UserError("this pipeline is a vocoder: it needs mel spectrograms, so use it from Python (mel=...)")
    if options.scheduler is not None:
        pipe.scheduler = create_scheduler(options.scheduler, pipe.scheduler.config)
    return pipe


def plan_samples(options: argparse.Namespace, config: Mapping[str, Any]) -> list[Sample]:
    """All samples of all processes: each with a seed of its own, so that no split of the work changes the audio."""
    labels = parse_labels(options.label, config)
    names = config.get("class_names")
    samples = []
    for index, seed in enumerate(sample_seeds(torch.Generator().manual_seed(options.seed), options.num_samples)):
        label = labels[index % len(labels)]
        name = names[label] if names and label is not None else None
        tag = "" if label is None else f"-{re.sub(r'[^A-Za-z0-9_.]+', '_', str(label) if name is None else name)}"
        samples.append(Sample(index, f"{index:04d}{tag}.wav", seed, label, name))
    return samples


def parse_labels(texts: Sequence[str] | None, config: Mapping[str, Any]) -> list[int] | list[None]:
    """Class indices that take turns: those named, else all classes; ``[None]`` for a model without classes.

    A text is looked up among the class names first and then taken as an index.
    """
    count, names = config.get("num_classes"), list(config.get("class_names") or [])
    if count is None:
        if texts:
            raise UserError("--label was given, but this model knows no classes: leave it out")
        return [None]
    wanted = [part.strip() for text in texts or [] for part in text.split(",")]
    labels = []
    for text in wanted:
        if text in names:
            labels.append(names.index(text))
        elif text.isdecimal() and int(text) < count:
            labels.append(int(text))
        else:
            near = difflib.get_close_matches(text, names, n=1)
            hint = f", did you mean {near[0]!r}?" if near else ""
            known = f"0 to {count - 1}" + (f" or {', '.join(names)}" if names else "")
            raise UserError(f"no class {text!r}{hint} (this model knows {known})")
    return labels or list(range(count))


def generate(pipe: SashimiPipeline, options: argparse.Namespace, batch: Sequence[Sample]) -> np.ndarray:
    """Waveforms of one batch, shape (B, C, L)."""
    labels = None if batch[0].label is None else [one.label for one in batch]
    with explained_exhaustion():
        return pipe(
            batch_size=len(batch),
            num_inference_steps=options.steps,
            generator=[torch.Generator().manual_seed(one.seed) for one in batch],
            audio_length_in_s=options.seconds,
            class_labels=labels,
            guidance_scale=guidance_scale(options),
        ).audios


def guidance_scale(options: argparse.Namespace) -> float:
    """Of classifier-free guidance; 1 is none."""
    return 1.0 if options.guidance_scale is None else options.guidance_scale


def make_record(
    options: argparse.Namespace, folder: Path, pipe: SashimiPipeline, samples: Sequence[Sample]
) -> dict[str, Any]:
    """What ``samples.json`` says: all that is needed to generate the same audio again."""
    schedule = {key: value for key, value in pipe.scheduler.config.items() if not key.startswith("_")}
    return {
        "command": shlex.join(["sashimi-sample", *sys.argv[1:]]),
        "seed": options.seed,
        "pipeline": {"name": options.pipeline, "model": type(pipe.model).__name__, "sha256": hash_pipeline(folder)},
        "scheduler": {
            "name": type(pipe.scheduler).__name__,
            "steps": pipe.scheduler.num_inference_steps,
            "config": schedule,
        },
        "guidance_scale": guidance_scale(options),
        "dtype": options.dtype,
        "device": pipe.device.type,
        "sample_rate": pipe.model.config.sample_rate,
        "samples_per_clip": pipe.length_in_samples(options.seconds),
        "clip_ratio": mean_clip_ratio(samples),
        "samples": [asdict(one) for one in samples],
    }


def summary(out: Path, samples: Sequence[Sample], elapsed: float, seconds_each: float, peak: int | None) -> str:
    """One line about what was made and what it took."""
    seconds = seconds_each * len(samples)
    memory = "unknown" if peak is None else f"{peak / 1e6:.0f} MB"
    return (
        f"{len(samples)} samples, {seconds:.1f} s of audio in {elapsed:.1f} s: "
        f"real-time factor {elapsed / seconds:.2f} (computing / audio), peak memory {memory}, "
        f"clipped {100 * mean_clip_ratio(samples):.3f} % -> {out}"
    )


def mean_clip_ratio(samples: Sequence[Sample]) -> float:
    """The ratio of all samples of all waveforms that lay beyond [-1, 1] and were clipped in the files."""
    return sum(one.clip_ratio for one in samples) / len(samples)
