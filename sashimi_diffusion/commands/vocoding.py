"""``sashimi-sample --resynthesize`` and ``--mel``: a vocoder generates waveforms from recordings or spectrograms."""

import argparse
import io
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from accelerate import PartialState
from torch import Tensor

from sashimi_diffusion.commands.given_files import is_given, require_strength
from sashimi_diffusion.commands.play import Player, play_files
from sashimi_diffusion.commands.sample_diffusion import finish, make_record, parse_labels
from sashimi_diffusion.commands.sample_folder import (
    SHEET_CLIPS,
    SampleFolder,
    require_finite,
    require_outside,
    require_space,
    require_wav_size,
    share_of_batches,
)
from sashimi_diffusion.data.audio import read_audio, write_audio
from sashimi_diffusion.data.audio_files import find_usable_audio
from sashimi_diffusion.data.mel import MelSettings
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.paths import is_folder, read_bytes
from sashimi_diffusion.pipelines import SashimiPipeline, sample_seeds
from sashimi_diffusion.pipelines.labels import known_labels
from sashimi_diffusion.pipelines.mel import checked_mel, mel_description
from sashimi_diffusion.pipelines.memory import report_out_of_memory, require_memory, sampling_memory
from sashimi_diffusion.pipelines.schedule import Schedule
from sashimi_diffusion.pipelines.vocoding import plan_windows, resynthesize, vocode
from sashimi_diffusion.schedulers import create_scheduler
from sashimi_diffusion.terminal import printable, say

_LARGEST_MEL = 2**30  # of a file in bytes; three hours of 80 bands
_ADVICE = "choose a shorter --window or a smaller --batch-size"
_FOREIGN = ("num_samples", "seconds", "audio", "keep", "continue", "jumps", "overlap")


@dataclass
class Source:
    """What a vocoder turns into one clip: a recording or a spectrogram.

    Args:
        path: its file.
        name: name of the clip, without an ending.
        is_mel: whether it is a spectrogram.
        samples: samples of the clip.
    """

    path: Path
    name: str
    is_mel: bool
    samples: int = 0


@dataclass
class Clip:
    """A clip to generate, as ``samples.json`` records it.

    Args:
        index: position among all clips.
        file: name of the wav file.
        seed: seed of its generator.
        source: path of the recording or the spectrogram.
        samples: its length in samples, that of the recording at the rate of the model.
        windows: number of windows.
        label, class_name, speaker, speaker_name: labels of the vocoder, None for one without labels.
        clip_ratio: fraction of audio samples outside [-1, 1], which are clipped in the file; None until it is written.
    """

    index: int
    file: str
    seed: int
    source: str
    samples: int
    windows: int
    label: int | None = None
    class_name: str | None = None
    speaker: int | None = None
    speaker_name: str | None = None
    clip_ratio: float | None = None


def sample_vocoder(
    options: argparse.Namespace, folder: Path, device: torch.device, dtype: torch.dtype, state: PartialState
) -> None:
    """Generate a clip from every recording and spectrogram, divided among the processes of ``accelerate launch``.

    Raises:
        UserError: an option, a recording or a spectrogram does not fit the pipeline (checked before generation), or
            memory or disk space is exhausted.
    """
    for name in _FOREIGN:
        if is_given(getattr(options, name)):
            raise UserError(
                f"--{name.replace('_', '-')} does not apply to --resynthesize and --mel, which give one clip for each "
                "recording or spectrogram: leave it out"
            )
    if options.window is not None and not (math.isfinite(options.window) and options.window > 0):
        raise UserError(f"--window is {options.window:g}, expected a number of seconds above 0")
    require_strength(options.strength)
    pipe = load_vocoder(folder, options, dtype).to(device)
    config = pipe.model.config
    pipe.set_timesteps(options.steps)
    Schedule(pipe.scheduler).check_strength(1.0 if options.strength is None else options.strength)
    sources = find_sources(options.resynthesize or (), options.mel or (), config)
    require_outside("--resynthesize", [source.path for source in sources if not source.is_mel], options)
    clips = plan_clips(options, pipe, sources)
    scale = pipe.resolve_guidance_scale(
        options.guidance_scale, clips[0].label is not None or clips[0].speaker is not None
    )
    rate, samples = config.sample_rate, [source.samples for source in sources]
    windows = [plan_windows(pipe.model, length, options.window) for length in samples]
    batch = min(options.batch_size, max(one.count for one in windows)) * (1 if scale == 1 else 2)
    require_memory(sampling_memory(config, batch, max(one.window for one in windows)), device, _ADVICE)
    require_wav_size(max(samples), rate)
    require_space(options.out, len(clips), -(-sum(samples) // len(samples)), options.overwrite)
    player = Player(rate, 1) if options.play else None
    if config.get("mel_settings") is None and state.is_main_process:
        say(f"note: this pipeline names no mel settings, so the defaults are used: {mel_description(config)}")

    record = make_record(options, folder, pipe, scale) | vocoder_record(pipe, windows, options.strength)
    own_pictures: list[tuple[int, np.ndarray]] = []
    started = time.perf_counter()
    with SampleFolder(options.out, clips, record, options.overwrite, state) as output:
        for share in share_of_batches(clips, 1, state):
            for clip in share:
                title = f"{clip.index + 1}/{len(clips)} {printable(sources[clip.index].name)}"
                pipe.set_progress_bar_config(desc=title, disable=not state.is_main_process)
                waveform = generate(pipe, options, sources[clip.index], clip, scale)
                output.start()
                clip.clip_ratio = write_audio(output.path / clip.file, waveform, rate)
                if clip.index < SHEET_CLIPS:
                    own_pictures.append((clip.index, waveform))
            output.start()
            output.add(share)
        finish(output, own_pictures, rate, started, lambda clip: clip.samples, device, state)
    if player is not None:
        play_files(player, [output.path / clip.file for clip in output.clips])
    if state.num_processes > 1:
        state.destroy_process_group()


def load_vocoder(folder: Path, options: argparse.Namespace, dtype: torch.dtype) -> SashimiPipeline:
    """Load the pipeline and set the requested sampler and the use of CUDA graphs.

    Raises:
        UserError: the pipeline is no vocoder, or the sampler does not exist.
    """
    pipe = SashimiPipeline.from_pretrained(folder, torch_dtype=dtype)
    if pipe.model.config.get("mel_channels") is None:
        option = "--resynthesize" if options.resynthesize else "--mel"
        raise UserError(f"{option} needs a vocoder, and {printable(options.pipeline)} takes no mel spectrograms")
    pipe.cuda_graph = not options.no_cuda_graph
    if options.scheduler is not None:
        pipe.scheduler = create_scheduler(options.scheduler, pipe.scheduler.config)
    return pipe


def find_sources(recordings: Sequence[Path], mels: Sequence[Path], config: Mapping[str, Any]) -> list[Source]:
    """Return all recordings in files and folders and all spectrograms, with the length of their clips.

    Everything is read once here, so that a bad file is found before hours of generation.

    Raises:
        UserError: a file is missing or cannot be used, or two sources have the same name.
    """
    sources: list[Source] = []
    for path in recordings:
        sources += _in_folder(path) if is_folder(path) else [Source(path, path.stem, is_mel=False)]
    sources += [Source(path, path.stem, is_mel=True) for path in mels]
    names: dict[str, Path] = {}
    for source in sources:
        if source.name in names:
            raise UserError(
                f"{printable(names[source.name])} and {printable(source.path)} would both become "
                f"{printable(source.name)}.wav: give them in two runs"
            )
        names[source.name] = source.path
    for source in sources:
        if source.is_mel:
            source.samples = read_mel(source.path, config).shape[-1] * int(np.prod(config["mel_upsample"]))
        else:
            source.samples = len(read_audio(source.path, config["sample_rate"]))
    return sources


def _in_folder(root: Path) -> list[Source]:
    """Return the recordings in a folder and its sub-folders; the names of files in sub-folders begin with these."""
    files = find_usable_audio(root)
    relative = [file.relative_to(root).with_suffix("").as_posix().replace("/", "-") for file in files]
    return [Source(file, name, is_mel=False) for file, name in zip(files, relative, strict=True)]


def read_mel(path: Path, config: Mapping[str, Any]) -> Tensor:
    """Return the spectrogram in a file of ``numpy.save``, float32 (1, mel_channels, frames).

    Raises:
        UserError: the file cannot be read, is of another kind, or has something else than one spectrogram that fits.
    """
    content = read_bytes(path, "a mel spectrogram, a file of numpy.save", _LARGEST_MEL)
    try:
        values = np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, OSError, MemoryError, SyntaxError, TypeError, OverflowError, BadZipFile) as error:
        raise UserError(
            f"{printable(path)} cannot be read ({type(error).__name__}): expected an array that numpy.save has written"
        ) from error
    if not isinstance(values, np.ndarray):
        raise UserError(f"{printable(path)} has several arrays: expected one, a .npy file that numpy.save has written")
    try:
        mel = checked_mel(config, values)
    except UserError as error:
        raise UserError(f"{printable(path)}: {error}") from error
    if len(mel) != 1:
        raise UserError(f"{printable(path)} has {len(mel)} spectrograms: expected one in a file, (bands, frames)")
    return mel


def plan_clips(options: argparse.Namespace, pipe: SashimiPipeline, sources: Sequence[Source]) -> list[Clip]:
    """Return the clip of each source, with a seed of its own; several labels alternate.

    Raises:
        UserError: a label does not exist.
    """
    seeds = sample_seeds(torch.Generator().manual_seed(options.seed), len(sources))
    clips = [
        Clip(
            *(index, f"{source.name}.wav", seed, str(source.path), source.samples),
            windows=plan_windows(pipe.model, source.samples, options.window).count,
        )
        for index, (source, seed) in enumerate(zip(sources, seeds, strict=True))
    ]
    fields = {"class": ("label", "class_name"), "speaker": ("speaker", "speaker_name")}
    for kind, texts, flag in (("class", options.label, "--label"), ("speaker", options.speaker, "--speaker")):
        known = known_labels(pipe.model.config, kind)
        chosen = parse_labels(flag, texts, kind, known)
        if chosen is None or known is None:
            continue
        for clip in clips:
            label = chosen[clip.index % len(chosen)]
            setattr(clip, fields[kind][0], label)
            setattr(clip, fields[kind][1], known.name(label))
    return clips


def generate(
    pipe: SashimiPipeline, options: argparse.Namespace, source: Source, clip: Clip, scale: float
) -> np.ndarray:
    """Generate the waveform of one clip, shape (samples,), with a scale of guidance.

    Raises:
        UserError: the memory is exhausted, or the waveform is not finite.
    """
    config = pipe.model.config
    make: Callable[..., np.ndarray] = (
        partial(vocode, pipe, read_mel(source.path, config))
        if source.is_mel
        else partial(resynthesize, pipe, read_audio(source.path, config.sample_rate))
    )
    with report_out_of_memory(_ADVICE):
        waveform = make(
            window_in_s=options.window,
            windows_per_batch=options.batch_size,
            num_inference_steps=options.steps,
            strength=options.strength,
            generator=torch.Generator().manual_seed(clip.seed),
            class_labels=clip.label,
            guidance_scale=scale,
            # The pipeline would choose a speaker; the index after the last one is no speaker.
            speaker_labels=config.num_speakers if clip.speaker is None else clip.speaker,
        )
    require_finite(waveform, options)
    return waveform


def vocoder_record(pipe: SashimiPipeline, windows: Sequence[Any], strength: float | None) -> dict[str, Any]:
    """Return what ``samples.json`` says about all clips of a vocoder, besides what it says about every pipeline."""
    config, rate = pipe.model.config, pipe.model.config.sample_rate
    return {
        "samples_per_clip": None,
        "strength": strength,
        "mel": {
            "bands": config.mel_channels,
            "hop": int(np.prod(config.mel_upsample)),
            **asdict(MelSettings.of(config.get("mel_settings"))),
        },
        "longest_window_in_s": max(one.window for one in windows) / rate,
        "overlap_in_s": max(one.overlap for one in windows) / rate,
    }
