"""What ``sashimi-sample`` does with a diffusion pipeline."""

import argparse
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
from sashimi_diffusion.pipelines.labels import PLURALS, KnownLabels, known_labels, labels_in_turn
from sashimi_diffusion.schedulers import create_scheduler


@dataclass
class Sample:
    """One waveform to generate: where it goes, what makes it, and afterwards how much of it was clipped."""

    index: int
    file: str
    seed: int
    label: int | None = None
    class_name: str | None = None
    speaker: int | None = None
    speaker_name: str | None = None
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
    forward_size = min(options.batch_size, len(samples)) * (1 if guidance_scale(options, pipe, samples) == 1 else 2)
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
    """All samples of all processes, so that no split of the work changes the audio.

    Each has a seed of its own. Classes take turns, and speakers after each round of classes.
    """
    classes, speakers = known_labels(config, "class"), known_labels(config, "speaker")
    chosen = parse_labels("--label", options.label, "class", classes)
    chosen_speakers = parse_labels("--speaker", options.speaker, "speaker", speakers)
    labels, voices = labels_in_turn(config, options.num_samples, chosen, chosen_speakers)
    samples = []
    for index, seed in enumerate(sample_seeds(torch.Generator().manual_seed(options.seed), options.num_samples)):
        sample = Sample(index, f"{index:04d}", seed)
        if labels is not None:
            sample.label, sample.class_name = labels[index], classes.name(labels[index])
            sample.file += file_tag(classes.title(sample.label))
        if voices is not None:
            sample.speaker, sample.speaker_name = voices[index], speakers.name(voices[index])
            sample.file += file_tag(speakers.title(sample.speaker))
        sample.file += ".wav"
        samples.append(sample)
    return samples


def file_tag(title: str) -> str:
    """What a file name says of a label."""
    return f"-{re.sub(r'[^A-Za-z0-9_.]+', '_', title)}"


def parse_labels(flag: str, texts: Sequence[str] | None, kind: str, known: KnownLabels | None) -> list[int] | None:
    """The labels of a repeatable option with commas; None where it was not given.

    Raises:
        UserError: a label that the model does not know, or a model that knows none of this kind.
    """
    if not texts:
        return None
    if known is None:
        raise UserError(f"{flag} was given, but this model knows no {PLURALS[kind]}: leave it out")
    return [known.index(part.strip()) for text in texts for part in text.split(",")]


def generate(pipe: SashimiPipeline, options: argparse.Namespace, batch: Sequence[Sample]) -> np.ndarray:
    """Waveforms of one batch, shape (B, C, L)."""
    labels = None if batch[0].label is None else [one.label for one in batch]
    speakers = None if batch[0].speaker is None else [one.speaker for one in batch]
    with explained_exhaustion():
        return pipe(
            batch_size=len(batch),
            num_inference_steps=options.steps,
            generator=[torch.Generator().manual_seed(one.seed) for one in batch],
            audio_length_in_s=options.seconds,
            class_labels=labels,
            guidance_scale=options.guidance_scale,
            speaker_labels=speakers,
        ).audios


def guidance_scale(options: argparse.Namespace, pipe: SashimiPipeline, samples: Sequence[Sample]) -> float:
    """Of classifier-free guidance, as the pipeline will choose it; 1 is none."""
    told = samples[0].label is not None or samples[0].speaker is not None
    return pipe.guidance(options.guidance_scale, told)


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
        "guidance_scale": guidance_scale(options, pipe, samples),
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
