"""``sashimi-sample`` with a diffusion pipeline."""

import argparse
import re
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from sashimi_diffusion.commands.given_files import GivenFiles, say_notes
from sashimi_diffusion.commands.play import Player, play_files
from sashimi_diffusion.commands.sample_folder import (
    SHEET_CLIPS,
    SampleFolder,
    require_finite,
    require_space,
    require_wav_size,
    share_of_batches,
)
from sashimi_diffusion.data.audio import write_audio
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.files import name_of
from sashimi_diffusion.pipelines import SashimiPipeline, hash_pipeline, sample_seeds
from sashimi_diffusion.pipelines.given_audio import LevelWarning
from sashimi_diffusion.pipelines.labels import PLURALS, KnownLabels, known_labels, labels_in_turn
from sashimi_diffusion.pipelines.memory import (
    peak_memory,
    report_out_of_memory,
    require_memory,
    require_plan_memory,
    sampling_memory,
)
from sashimi_diffusion.pipelines.windows import checked_windows
from sashimi_diffusion.schedulers import create_scheduler
from sashimi_diffusion.terminal import counted, printable, say


@dataclass
class Clip:
    """A clip to generate: its file, its seed and its labels.

    Args:
        index: position among all clips.
        file: name of the wav file.
        seed: seed of its generator.
        label: index of the class, or None.
        class_name: name of the class, or None.
        speaker: index of the speaker, or None.
        speaker_name: name of the speaker, or None.
        clip_ratio: fraction of audio samples outside [-1, 1], which are clipped in the file; None until it is written.
    """

    index: int
    file: str
    seed: int
    label: int | None = None
    class_name: str | None = None
    speaker: int | None = None
    speaker_name: str | None = None
    clip_ratio: float | None = None


@dataclass
class GivenClip(Clip):
    """A clip that is made of a given recording.

    Args:
        audio: path of the recording.
        samples: length of the clip.
    """

    audio: str = ""
    samples: int = 0


def sample_diffusion(
    options: argparse.Namespace, folder: Path, device: torch.device, dtype: torch.dtype, state: PartialState
) -> None:
    """Generate clips, divided among the processes of ``accelerate launch``.

    Raises:
        UserError: the options do not fit the pipeline or the machine (checked before generation), or memory or disk
            space is exhausted.
    """
    pipe = load_pipeline(folder, options, dtype).to(device)
    rate, channels = pipe.model.config.sample_rate, pipe.model.config.in_channels
    pipe.set_timesteps(options.steps)
    used = options.audio_files[: options.num_samples]
    given = GivenFiles(used, options, pipe) if used else None
    files = given.files if given is not None else []
    length = max((file.length for file in files), default=pipe.length_in_samples(options.seconds))
    chosen = options.window is not None
    if given is not None and not chosen and length > pipe.model.config.sample_size:
        options.window = pipe.model.config.sample_size / rate
    if given is not None and state.is_main_process:
        say_notes(given.notes(options.window, chosen))
    windows = checked_windows(
        length,
        options.window,
        options.overlap,
        options.batch_size,
        pipe.model.config,
        pipe.model.length_multiple,
        ("--window", "--overlap"),
    )
    require_plan_memory(options.num_samples)
    clips = plan_clips(options, pipe.model.config, given, limit=1)
    scale = guidance_scale(options, pipe, clips)
    in_one_pass = windows.count == 1
    forward_size = min(options.batch_size, options.num_samples) if in_one_pass else options.batch_size
    forward_size *= 1 if scale == 1 else 2
    held = 0 if in_one_pass else 12 * min(options.batch_size, options.num_samples) * channels * length
    require_memory(sampling_memory(pipe.model.config, forward_size, windows.window) + held, device)
    require_wav_size(length, rate, channels)
    require_space(options.out, options.num_samples, length * channels, options.overwrite)
    clips = plan_clips(options, pipe.model.config, given)
    player = Player(rate, channels) if options.play else None

    own_pictures: list[tuple[int, np.ndarray]] = []
    record = make_record(options, folder, pipe, scale, given)
    started = time.perf_counter()
    with SampleFolder(options.out, clips, record, options.overwrite, state) as output:
        batches = share_of_batches(clips, options.batch_size, state)
        for number, batch in enumerate(batches, start=1):
            pipe.set_progress_bar_config(desc=f"batch {number}/{len(batches)}", disable=not state.is_main_process)
            waveforms = generate(pipe, options, batch, given) if batch else []
            output.start()
            for clip, waveform in zip(batch, waveforms, strict=True):
                clip.clip_ratio = write_audio(output.path / clip.file, waveform, rate)
                if clip.index < SHEET_CLIPS:
                    own_pictures.append((clip.index, waveform.mean(axis=0)))
            output.add(batch)
        finish(output, own_pictures, rate, started, lambda clip: clip_length(clip, length), device, state, given)
    if player is not None:
        play_files(player, [output.path / clip.file for clip in output.clips])
    if state.num_processes > 1:
        state.destroy_process_group()


def load_pipeline(folder: Path, options: argparse.Namespace, dtype: torch.dtype) -> SashimiPipeline:
    """Load the pipeline and set the requested sampler and the use of CUDA graphs.

    Raises:
        UserError: the pipeline is a vocoder, or the sampler does not exist.
    """
    pipe = SashimiPipeline.from_pretrained(folder, torch_dtype=dtype)
    if pipe.model.config.get("mel_channels") is not None:
        raise UserError(
            "this pipeline is a vocoder: give it recordings with --resynthesize or mel spectrograms with --mel"
        )
    pipe.cuda_graph = not options.no_cuda_graph
    if options.scheduler is not None:
        pipe.scheduler = create_scheduler(options.scheduler, pipe.scheduler.config)
    return pipe


def plan_clips(
    options: argparse.Namespace, config: Mapping[str, Any], given: GivenFiles | None = None, limit: int | None = None
) -> list[Clip]:
    """Return the clips of all processes, or the first ``limit`` of them.

    Each has its own seed, so the division among processes and batches does not change the audio. Classes alternate, and
    speakers alternate after each round of classes; clips made of given recordings have no class unless one is chosen.
    The recordings alternate.

    Raises:
        UserError: a label does not exist.
    """
    classes, speakers = known_labels(config, "class"), known_labels(config, "speaker")
    chosen = parse_labels("--label", options.label, "class", classes)
    chosen_speakers = parse_labels("--speaker", options.speaker, "speaker", speakers)
    count = options.num_samples if limit is None else min(limit, options.num_samples)
    class_labels, speaker_labels = labels_in_turn(config, count, chosen, chosen_speakers)
    if given is not None and classes is not None and chosen is None:
        if chosen_speakers is not None:
            raise UserError("--speaker with --audio needs --label: this model needs both or neither")
        class_labels = speaker_labels = None
    clips = []
    for index, seed in enumerate(sample_seeds(torch.Generator().manual_seed(options.seed), count)):
        clip = Clip(index, f"{index:04d}", seed)
        if given is not None:
            file = given.files[index % len(given.files)]
            name = f"{clip.file}{file_tag(file.path.stem)}"
            clip = GivenClip(index, name, seed, audio=str(file.path), samples=file.length)
        if classes is not None and class_labels is not None:
            clip.label, clip.class_name = class_labels[index], classes.name(class_labels[index])
            clip.file += file_tag(classes.title(class_labels[index]))
        if speakers is not None and speaker_labels is not None:
            clip.speaker, clip.speaker_name = speaker_labels[index], speakers.name(speaker_labels[index])
            clip.file += file_tag(speakers.title(speaker_labels[index]))
        clip.file += ".wav"
        clips.append(clip)
    return clips


def file_tag(title: str) -> str:
    """Return the part of a file name that contains a label."""
    return f"-{name_of(re.sub(r'[^A-Za-z0-9_.]+', '_', title))}"


def parse_labels(flag: str, texts: Sequence[str] | None, kind: str, known: KnownLabels | None) -> list[int] | None:
    """Return the labels of an option that may be repeated and may contain commas; None if it was not given.

    Raises:
        UserError: the model has no such label, or no labels of this kind.
    """
    if not texts:
        return None
    if known is None:
        raise UserError(f"{flag} was given, but this model has no {PLURALS[kind]}: leave it out")
    return [known.index(part.strip()) for text in texts for part in text.split(",")]


def generate(
    pipe: SashimiPipeline, options: argparse.Namespace, batch: Sequence[Clip], given: GivenFiles | None = None
) -> list[np.ndarray]:
    """Generate the waveforms of one batch, (C, L) each.

    Clips that are made of recordings of different lengths need a call for each length.

    Raises:
        UserError: the memory is exhausted, or the waveforms are not finite.
    """
    if given is None:
        return list(call(pipe, options, batch, {"audio_length_in_s": options.seconds}))
    waveforms: dict[int, np.ndarray] = {}
    files = {clip.index: given.files[clip.index % len(given.files)] for clip in batch}
    for samples in sorted({file.samples for file in files.values()}):
        clips = [clip for clip in batch if files[clip.index].samples == samples]
        arguments = given.arguments([files[clip.index] for clip in clips])
        for clip, waveform in zip(clips, call(pipe, options, clips, arguments), strict=True):
            waveforms[clip.index] = waveform
    return [waveforms[clip.index] for clip in batch]


def call(
    pipe: SashimiPipeline, options: argparse.Namespace, clips: Sequence[Clip], arguments: Mapping[str, Any]
) -> np.ndarray:
    """Return the waveforms (B, C, L) of one call of the pipeline, with ``arguments`` besides those of the options."""
    with report_out_of_memory(), warnings.catch_warnings():
        warnings.simplefilter("ignore", LevelWarning)  # a note has named the file
        warnings.filterwarnings("ignore", r"\d+ steps? (is|are) too few")  # said once, before the first call
        audios = pipe(
            batch_size=len(clips),
            num_inference_steps=options.steps,
            generator=[torch.Generator().manual_seed(clip.seed) for clip in clips],
            class_labels=[clip.label for clip in clips if clip.label is not None] or None,
            guidance_scale=options.guidance_scale,
            speaker_labels=[clip.speaker for clip in clips if clip.speaker is not None] or None,
            window_in_s=options.window,
            overlap_in_s=options.overlap,
            windows_per_batch=max(1, options.batch_size // len(clips)),
            **arguments,
        ).audios
    require_finite(audios, options)
    return audios


def clip_length(clip: Clip, length: int) -> int:
    """Return the samples of a clip; ``length`` is that of clips that are not made of a recording."""
    return clip.samples if isinstance(clip, GivenClip) else length


def guidance_scale(options: argparse.Namespace, pipe: SashimiPipeline, clips: Sequence[Clip]) -> float:
    """Return the scale of classifier-free guidance that the pipeline will use; 1 is no guidance."""
    has_labels = clips[0].label is not None or clips[0].speaker is not None
    return pipe.resolve_guidance_scale(options.guidance_scale, has_labels)


def make_record(
    options: argparse.Namespace, folder: Path, pipe: SashimiPipeline, scale: float, given: GivenFiles | None = None
) -> dict[str, Any]:
    """Return the settings in ``samples.json``; with the clips, they suffice to generate the same audio again."""
    lengths = {pipe.length_in_samples(options.seconds)} if given is None else {file.length for file in given.files}
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
        "guidance_scale": scale,
        "dtype": options.dtype,
        "device": pipe.device.type,
        "sample_rate": pipe.model.config.sample_rate,
        "samples_per_clip": lengths.pop() if len(lengths) == 1 else None,
        **({} if given is None else {"given": given.record(options)}),
        **({} if options.window is None else {"window": options.window, "overlap": options.overlap}),
        "clip_ratio": None,
    }


def finish(
    output: SampleFolder,
    own_pictures: Sequence[tuple[int, np.ndarray]],
    rate: int,
    started: float,
    length_of: Callable[[Any], int],
    device: torch.device,
    state: PartialState,
    given: GivenFiles | None = None,
) -> None:
    """Write the contact sheet and the record of all clips, and print a line about them. All processes call it.

    Args:
        output: the folder of the clips.
        own_pictures: index and waveform (L,) of the clips of this process that the contact sheet shows.
        rate: sample rate in Hz.
        started: time at which the generation began, from ``time.perf_counter``.
        length_of: function that returns the samples of a clip.
        device: device whose peak memory is printed.
        state: the processes.
        given: the recordings of ``--audio``, or None. Generated parts beside kept ones are marked on the sheet.
    """
    pictures = [waveform for _, waveform in sorted(gather_object(own_pictures), key=lambda pair: pair[0])]
    elapsed = time.perf_counter() - started
    if state.is_main_process:
        titles = [Path(clip.file).stem for clip in output.clips[: len(pictures)]]
        marked = None if given is None else [given.generated(index) for index in range(len(pictures))]
        output.finish(pictures, rate, titles, marked, clip_ratio=mean_clip_ratio(output.clips))
        seconds = sum(map(length_of, output.clips)) / rate
        say(summary(output.path, output.clips, elapsed, seconds, peak_memory(device)))


def summary(out: Path, clips: Sequence[Clip], elapsed: float, seconds: float, peak: int | None) -> str:
    """Return one line about the ``seconds`` of audio of all clips, the time and the memory."""
    memory = "unknown" if peak is None else f"{peak / 1e6:.0f} MB"
    return (
        f"{counted(len(clips), 'clip')}, {seconds:.1f} s of audio in {elapsed:.1f} s: "
        f"real-time factor {elapsed / seconds:.2f} (computing / audio), peak memory {memory}, "
        f"clipped {100 * mean_clip_ratio(clips):.3f} % -> {printable(out)}"
    )


def mean_clip_ratio(clips: Sequence[Clip]) -> float:
    """Return the fraction of all audio samples of all clips that were clipped to [-1, 1] in the files."""
    return sum(clip.clip_ratio or 0.0 for clip in clips) / len(clips)
