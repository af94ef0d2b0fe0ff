"""Draw clips and continue recordings, and name the ``sashimi-sample`` command with which each result is repeated."""

import contextlib
import shlex
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from sashimi_diffusion.command_line import select_device
from sashimi_diffusion.data.audio import resample, write_audio
from sashimi_diffusion.data.decoding import AudioFileError, decode_audio
from sashimi_diffusion.demo.catalog import Catalog, Entry
from sashimi_diffusion.demo.jobs import Stopped
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.pipelines import sample_seeds
from sashimi_diffusion.pipelines.labels import KnownLabels, labels_in_turn
from sashimi_diffusion.pipelines.memory import report_out_of_memory, require_memory, sampling_memory
from sashimi_diffusion.schedulers import create_scheduler
from sashimi_diffusion.terminal import printable

QUICK_SAMPLER = "dpmsolver++-sde-karras"
"""The sampler that the page suggests, because 20 steps suffice."""
MOST_CLIPS = 8
MOST_SEEDS = 2**31
LONGEST_RECORDING = 60.0
"""Length in seconds of a recording that can be continued."""

_FEWER = "ask for fewer clips, or for a pipeline with shorter ones"
_SHORTER = "ask for fewer seconds"

Report = Callable[[int, int], None]
"""A function of the number of steps that are done, and of all steps."""


@dataclass(frozen=True)
class Clip:
    """A generated sound.

    Args:
        title: what it is.
        waveform: float32 (C, L).
        rate: sample rate in Hz.
        wav: the content of a PCM16 wav file.
    """

    title: str
    waveform: np.ndarray
    rate: int
    wav: bytes


@dataclass(frozen=True)
class Drawing:
    """The settings of clips that a diffusion pipeline draws.

    Args:
        pipeline: name of the pipeline.
        label: name or index of the class; None: all classes in turn.
        voice: name or index of the speaker; None: all speakers in turn.
        sampler: name of the sampler; None is that of the pipeline.
        steps: number of sampling steps.
        guidance: scale of classifier-free guidance; None if the model has no labels.
        seed: random seed, from 0 to 2^31 - 1; None, an empty field, is an error.
        count: number of clips.
    """

    pipeline: str
    label: str | None
    voice: str | None
    sampler: str | None
    steps: int
    guidance: float | None
    seed: int | None
    count: int = 1

    def command(self, device: torch.device) -> str:
        """Return the command that writes the same clips."""
        return _command(
            device,
            pipeline=self.pipeline,
            num_samples=self.count,
            label=self.label,
            speaker=self.voice,
            scheduler=self.sampler,
            steps=self.steps,
            guidance_scale=self.guidance,
            seed=self.seed,
        )


@dataclass(frozen=True)
class Continuation:
    """The settings of a sound that an autoregressive pipeline generates.

    Args:
        pipeline: name of the pipeline.
        recording: a file that is continued; None: the sound begins from nothing.
        seconds: length of what is added.
        temperature: see :class:`sashimi_diffusion.generation.Sampling`.
        top_p: as ``temperature``.
        seed: random seed, from 0 to 2^31 - 1; None, an empty field, is an error.
    """

    pipeline: str
    recording: Path | None
    seconds: float
    temperature: float
    top_p: float
    seed: int | None

    def command(self, device: torch.device, total: float) -> str:
        """Return the command that writes the same clip of ``total`` seconds, if the recording is in its folder."""
        return _command(
            device,
            pipeline=self.pipeline,
            num_samples=1,
            prefix=None if self.recording is None else self.recording.name,
            seconds=total,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
        )


def _command(device: torch.device, **settings: object) -> str:
    parts = ["sashimi-sample"]
    if device != select_device("auto"):
        settings["device"] = device
    settings["out"] = f"seed-{settings['seed']}"
    for name, value in settings.items():
        if value is not None:
            flag, text = f"--{name.replace('_', '-')}", str(value).removesuffix(".0")
            # A value that begins like an option must be part of the same word.
            parts += [f"{flag}={text}"] if text.startswith("-") else [flag, text]
    return shlex.join(parts)


def label_text(labels: KnownLabels, index: int) -> str:
    """Return the text that means a label for ``sashimi-sample``: its name, or its index where the name cannot be."""
    title = labels.title(index)
    plain = title and "," not in title and title == title.strip() and labels.index(title) == index
    return title if plain else str(index)


def draw(entry: Entry, drawing: Drawing, report: Report) -> list[Clip]:
    """Generate the clips of a drawing.

    Args:
        entry: the pipeline.
        drawing: the settings.
        report: called after each step; an error that it raises ends the call.

    Raises:
        UserError: the settings do not fit the pipeline or each other, or the memory does not suffice.
    """
    seed = _checked_seed(drawing.seed)
    if not 1 <= drawing.count <= MOST_CLIPS:
        raise UserError(f"cannot draw {drawing.count} clips at once: ask for 1 to {MOST_CLIPS}")
    pipe, config = entry.pipe, entry.pipe.model.config
    labels, voices = labels_in_turn(
        config, drawing.count, _chosen(entry.classes, drawing.label), _chosen(entry.speakers, drawing.voice)
    )
    forward_size = drawing.count * (1 if drawing.guidance in (None, 1) else 2)
    require_memory(sampling_memory(config, forward_size, config.sample_size), pipe.device, _FEWER)
    seeds = sample_seeds(torch.Generator().manual_seed(seed), drawing.count)
    with entry.lock, report_out_of_memory(_FEWER):
        report(0, drawing.steps)
        if drawing.sampler is None:
            pipe.scheduler = entry.scheduler
        else:
            pipe.scheduler = create_scheduler(drawing.sampler, entry.scheduler.config)
        total = len(pipe.set_timesteps(drawing.steps))
        audios = pipe(
            batch_size=drawing.count,
            num_inference_steps=drawing.steps,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            class_labels=labels,
            speaker_labels=voices,
            guidance_scale=drawing.guidance,
            callback_on_step_end=lambda _pipe, step, _t, _tensors: report(step + 1, total),
        ).audios
    titles = _titles(entry, drawing.count, labels, voices)
    return [_clip(title, audio, entry.rate) for title, audio in zip(titles, audios, strict=True)]


def _chosen(labels: KnownLabels | None, text: str | None) -> list[int] | None:
    if text is None:
        return None
    if labels is None:
        raise UserError(f"this pipeline has no label {text}: choose another pipeline")
    return [labels.index(text)]


def _titles(entry: Entry, count: int, labels: list[int] | None, voices: list[int] | None) -> list[str]:
    titles = []
    for number in range(count):
        parts = ["Clip" if count == 1 else f"Clip {number + 1} of {count}"]
        if entry.classes is not None and labels is not None:
            parts.append(f"“{entry.classes.title(labels[number])}”")
        if entry.speakers is not None and voices is not None:
            parts.append(entry.speakers.title(voices[number]))
        titles.append(" · ".join(parts))
    return titles


def read_opening(entry: Entry, recording: Path | None) -> np.ndarray | None:
    """Return the recording that is to be continued, at the rate of the model, float32 (P,); None without one.

    Raises:
        UserError: it is not audio, too long, or has no sound.
    """
    if recording is None:
        return None
    try:
        waveform, rate, _ = decode_audio(recording, LONGEST_RECORDING + 1)
    except AudioFileError as error:  # its path is one of the server's, which the user does not know
        raise UserError(f"cannot use {printable(recording.name)}: {error.reason}") from error
    if len(waveform) > LONGEST_RECORDING * rate:
        raise UserError(f"{printable(recording.name)} is longer than {LONGEST_RECORDING:g} seconds: cut it")
    entry.pipe.prefix_tokens(waveform)  # before resampling, which adds ripples to a constant waveform
    return resample(waveform, rate, entry.rate)


def continue_recording(
    entry: Entry, continuation: Continuation, opening: np.ndarray | None, stop: threading.Event
) -> Iterator[np.ndarray]:
    """Generate a sound and yield it in blocks of 0.1 s, float32 (n,); the recording is the first block.

    Raises:
        UserError: the settings do not fit the pipeline, or the memory does not suffice.
        Stopped: ``stop`` is set.
    """
    seed = sample_seeds(torch.Generator().manual_seed(_checked_seed(continuation.seed)), 1)[0]
    with entry.lock, report_out_of_memory(_SHORTER):
        blocks = entry.pipe.stream(
            block=max(1, entry.rate // 10),
            audio_length_in_s=total_seconds(entry, continuation, opening),
            prefix=opening,
            temperature=continuation.temperature,
            top_p=continuation.top_p,
            generator=[torch.Generator().manual_seed(seed)],
        )
        for audio, generation in blocks:
            if stop.is_set():
                raise Stopped
            if not bool(generation.log_likelihood.isfinite().all()):
                raise UserError("the pipeline computes values that are not finite: use another checkpoint")
            yield audio[0, 0].cpu().numpy()


def total_seconds(entry: Entry, continuation: Continuation, opening: np.ndarray | None) -> float:
    """Return the length of the whole sound, with the recording."""
    return ((0 if opening is None else len(opening)) + entry.pipe.length_in_samples(continuation.seconds)) / entry.rate


def continued_clip(entry: Entry, continuation: Continuation, blocks: list[np.ndarray]) -> Clip:
    """Return the blocks of :func:`continue_recording` as a clip."""
    title = "Sound from nothing" if continuation.recording is None else f"{continuation.recording.name}, continued"
    return _clip(title, np.concatenate(blocks)[None], entry.rate)


def warm_up(catalog: Catalog, stop: threading.Event) -> None:
    """Sample a little with every pipeline, so that what is computed or compiled only once is ready.

    Raises:
        Stopped: ``stop`` is set.
    """

    def report(done: int, _total: int) -> None:
        if done or stop.is_set():
            raise Stopped

    for name in catalog.names(autoregressive=False):
        guided = catalog[name].takes_guidance
        steps = catalog[name].most_steps  # only one is done
        with contextlib.suppress(Stopped):
            draw(catalog[name], Drawing(name, None, None, None, steps, 2.0 if guided else None, 0), report)
        if stop.is_set():
            raise Stopped
    for name in catalog.names(autoregressive=True):
        short = Continuation(name, None, 1 / catalog[name].rate, 1.0, 1.0, 0)
        list(continue_recording(catalog[name], short, read_opening(catalog[name], None), stop))


def _clip(title: str, audio: np.ndarray, rate: int) -> Clip:
    if not np.isfinite(audio).all():
        raise UserError("the pipeline computes values that are not finite: use another checkpoint or other settings")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.wav"
        write_audio(path, audio, rate)
        return Clip(title, audio, rate, path.read_bytes())


def _checked_seed(seed: int | None) -> int:
    if seed is None or not 0 <= seed < MOST_SEEDS:
        found = "empty" if seed is None else seed
        raise UserError(f"the seed is {found}: enter a whole number from 0 to {MOST_SEEDS - 1}")
    return seed
