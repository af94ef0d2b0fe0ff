"""``sashimi-sample`` with an autoregressive pipeline."""

import argparse
import collections
import contextlib
import hashlib
import math
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from tqdm import tqdm

from sashimi_diffusion.commands.play import Player
from sashimi_diffusion.commands.sample_folder import (
    SHEET_CLIPS,
    SampleFolder,
    require_finite,
    require_outside,
    require_space,
    require_wav_size,
    share_of_batches,
)
from sashimi_diffusion.commands.stream import text_stream, write_stream
from sashimi_diffusion.data.audio import resample, write_audio
from sashimi_diffusion.data.decoding import decode_audio
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.generation import (
    Generation,
    check_memory,
    create_engine,
    engine_name,
    require_weights,
)
from sashimi_diffusion.generation.likelihood import likelihood_window
from sashimi_diffusion.generation.runaway import runaway_second
from sashimi_diffusion.output_files import check_output_files
from sashimi_diffusion.pipelines import SashimiAutoregressivePipeline, hash_pipeline, sample_seeds
from sashimi_diffusion.pipelines.memory import peak_memory, report_out_of_memory, require_plan_memory
from sashimi_diffusion.terminal import counted, printable, say

_MORE_SECONDS = 60  # of a prefix are read than fit into a clip, so that an error states the length of most prefixes


@dataclass
class Clip:
    """A clip to generate, and its likelihood.

    Args:
        index: position among all clips.
        seed: seed of its generator.
        file: name of the wav file; None if the clip is not kept.
        log_likelihood: log-likelihood of the generated samples, without the prefix, in nats; None until it is written.
        bits_per_sample: negative log-likelihood per generated sample in bits.
        runaway_second: time in seconds at which the clip degenerates into noise, or None if it does not.
    """

    index: int
    seed: int
    file: str | None = None
    log_likelihood: float | None = None
    bits_per_sample: float | None = None
    runaway_second: float | None = None


def sample_autoregressive(
    options: argparse.Namespace, folder: Path, device: torch.device, dtype: torch.dtype, state: PartialState
) -> None:
    """Generate clips, divided among the processes of ``accelerate launch``, or stream one clip.

    Raises:
        UserError: the options do not fit the pipeline or the machine, or memory or disk space is exhausted.
    """
    pipe = SashimiAutoregressivePipeline.from_pretrained(folder, torch_dtype=dtype).to(device)
    prefix = None if options.prefix is None else read_prefix(options, pipe)
    length, rate = pipe.length_in_samples(options.seconds), pipe.model.config.sample_rate
    require_wav_size(length, rate)
    count = 1 if options.stream is not None or options.play else options.num_samples
    options.weights = options.weights or default_weights(options, pipe)
    check_options(options, pipe, min(options.batch_size, count), 0 if prefix is None else len(prefix))
    if options.stream is not None or options.play:
        files = [path for path in folder.rglob("*") if path.is_file()]
        check_output_files({"--stream": options.stream}, [*files, *([options.prefix] if options.prefix else [])])
        stream(options, pipe, prefix)
        return
    if options.prefix is not None:
        require_outside("--prefix", [options.prefix], options)
    require_plan_memory(count)
    require_space(options.out, count, length, options.overwrite)
    selected = options.likelihood_window is not None or options.sort_by_likelihood
    clips = plan_clips(options, selected)
    if options.likelihood_window is not None:
        likelihood_window(np.zeros(count), *options.likelihood_window)  # raises its errors before generation

    record = make_record(options, folder, pipe, length)
    started = time.perf_counter()
    with SampleFolder(options.out, clips, record, options.overwrite, state, numbered=selected) as output:
        batches = share_of_batches(clips, options.batch_size, state)
        for number, batch in enumerate(batches, start=1):
            pipe.set_progress_bar_config(
                desc=f"batch {number}/{len(batches)}", unit=" samples", disable=not state.is_main_process
            )
            waveforms = generate(pipe, options, prefix, batch) if batch else []
            output.start()
            for clip, waveform in zip(batch, waveforms, strict=True):
                write_audio(output.path / str(clip.file), waveform, rate)
            output.add(batch)
        elapsed = time.perf_counter() - started
        if state.is_main_process:
            kept = select_clips(options, output.clips)
            if selected:
                output.number_files(kept)
            names = [str(clip.file) for clip in kept[:SHEET_CLIPS]]
            waveforms = [decode_audio(output.path / name).samples for name in names]
            speed = round(count * length / elapsed, 1)
            output.finish(waveforms, rate, [Path(name).stem for name in names], samples_per_second=speed)
            say(summary(options.out, output.clips, len(kept), elapsed, length, rate, peak_memory(device)))
    if state.num_processes > 1:
        state.destroy_process_group()


def check_options(
    options: argparse.Namespace, pipe: SashimiAutoregressivePipeline, batch_size: int, prefix_length: int
) -> None:
    """Raise the errors of generation that options cause, before anything is written."""
    engine, weights = options.engine or "auto", options.weights
    pipe.sampling(options.temperature, options.top_k, options.top_p)  # raises its errors before generation
    length, rate = pipe.length_in_samples(options.seconds), pipe.model.config.sample_rate
    if prefix_length >= length:
        raise UserError(
            f"the prefix has {prefix_length} samples, the clip {length}: ask for more --seconds than "
            f"{prefix_length / rate:g}, or give a shorter prefix"
        )
    check_memory(pipe.model, batch_size, length, prefix_length)
    require_weights(weights, engine_name(engine, pipe.model))
    if engine != "auto":
        create_engine(engine, pipe.model, 1)


def default_weights(options: argparse.Namespace, pipe: SashimiAutoregressivePipeline) -> str:
    """Return the format of the weights if none is given: exact, or as fast as a sound card needs it."""
    return "int16" if options.play and engine_name(options.engine or "auto", pipe.model) == "numba" else "float32"


def plan_clips(options: argparse.Namespace, selected: bool) -> list[Clip]:
    """Return the clips of all processes; files that will be ``selected`` and numbered later have other names."""
    seeds = sample_seeds(torch.Generator().manual_seed(options.seed), options.num_samples)
    prefix = "unsorted-" if selected else ""
    return [Clip(index, seed, f"{prefix}{index:04d}.wav") for index, seed in enumerate(seeds)]


def read_prefix(options: argparse.Namespace, pipe: SashimiAutoregressivePipeline) -> np.ndarray:
    """Read the recording ``--prefix`` at the sample rate of the pipeline, (L,); print a note if it is resampled.

    Raises:
        UserError: the file is not audio, or has no sound.
    """
    path, rate = options.prefix, pipe.model.config.sample_rate
    longest = pipe.length_in_samples(options.seconds) / rate + _MORE_SECONDS
    waveform, recorded, _ = decode_audio(path, longest)
    try:
        pipe.prefix_tokens(waveform)  # before resampling, which adds ripples to a constant waveform
    except UserError as error:
        raise UserError(f"--prefix {printable(path)}: {error}") from error
    if recorded == rate:
        return waveform
    say(f"note: {printable(path)} is resampled from {recorded} Hz to the model's {rate} Hz", sys.stderr)
    return resample(waveform, recorded, rate)


def generate(
    pipe: SashimiAutoregressivePipeline, options: argparse.Namespace, prefix: np.ndarray | None, batch: Sequence[Clip]
) -> list[np.ndarray]:
    """Generate the waveforms (L,) of a batch, and set the likelihood and ``runaway_second`` of its clips.

    Raises:
        UserError: the memory is exhausted, or the likelihoods are not finite.
    """
    with report_out_of_memory():
        output = pipe(
            batch_size=len(batch),
            audio_length_in_s=options.seconds,
            prefix=prefix,
            generator=[torch.Generator().manual_seed(clip.seed) for clip in batch],
            **sampling_arguments(options, pipe),
        )
    require_finite(output.log_likelihoods, options)
    generated = output.audios.shape[-1] - output.prefix_length
    for clip, waveform, log_likelihood in zip(batch, output.audios[:, 0], output.log_likelihoods, strict=True):
        clip.log_likelihood = float(log_likelihood)
        clip.bits_per_sample = -float(log_likelihood) / generated / math.log(2)
        clip.runaway_second = runaway_second(waveform, pipe.model.config.sample_rate)
    return list(output.audios[:, 0])


def sampling_arguments(options: argparse.Namespace, pipe: SashimiAutoregressivePipeline) -> dict[str, Any]:
    """Return the arguments of the pipeline that determine how samples are drawn."""
    return {
        **asdict(pipe.sampling(options.temperature, options.top_k, options.top_p)),
        "engine": options.engine or "auto",
        "weights": options.weights,
    }


def select_clips(options: argparse.Namespace, clips: list[Clip]) -> list[Clip]:
    """Return the clips to keep, in the order of their files."""
    kept = clips
    if options.likelihood_window is not None:
        log_likelihoods = np.array([clip.log_likelihood for clip in kept], dtype=np.float64)
        kept = [kept[index] for index in likelihood_window(log_likelihoods, *options.likelihood_window)]
    if options.sort_by_likelihood:
        kept = sorted(kept, key=lambda clip: clip.log_likelihood or 0.0)
    return kept


def make_record(
    options: argparse.Namespace, folder: Path, pipe: SashimiAutoregressivePipeline, length: int
) -> dict[str, Any]:
    """Return the settings in ``samples.json``; with the clips, they suffice to generate the same clips again."""
    prefix = None
    if options.prefix is not None:
        prefix = {"file": str(options.prefix), "sha256": hashlib.sha256(options.prefix.read_bytes()).hexdigest()}
    return {
        "command": shlex.join(["sashimi-sample", *sys.argv[1:]]),
        "seed": options.seed,
        "pipeline": {"name": options.pipeline, "model": type(pipe.model).__name__, "sha256": hash_pipeline(folder)},
        **sampling_arguments(options, pipe),
        "prefix": prefix,
        "likelihood_window": options.likelihood_window,
        "sorted_by_likelihood": options.sort_by_likelihood,
        "dtype": options.dtype,
        "device": pipe.device.type,
        "sample_rate": pipe.model.config.sample_rate,
        "samples_per_clip": length,
        "samples_per_second": None,
    }


def summary(
    out: Path, clips: Sequence[Clip], kept: int, elapsed: float, length: int, sample_rate: int, peak: int | None
) -> str:
    """Return one line about the generated audio, the time and the memory."""
    samples = len(clips) * length
    runaways = sum(clip.runaway_second is not None for clip in clips)
    selected = f", {kept} kept" if kept < len(clips) else ""
    noise = f", {runaways} degenerated into noise (see runaway_second in samples.json)" if runaways else ""
    memory = "unknown" if peak is None else f"{peak / 1e6:.0f} MB"
    factor = elapsed / samples * sample_rate
    bits = sum(clip.bits_per_sample or 0.0 for clip in clips) / len(clips)
    return (
        f"{counted(len(clips), 'clip')}{selected}, {samples / sample_rate:.1f} s of audio in {elapsed:.1f} s: "
        f"{samples / elapsed:.0f} samples/s, real-time factor {factor:.2f} (computing / audio), "
        f"{bits:.3f} bits per sample, peak memory {memory}{noise} -> {printable(out)}"
    )


def stream(options: argparse.Namespace, pipe: SashimiAutoregressivePipeline, prefix: np.ndarray | None) -> None:
    """Write one clip to the file ``--stream`` during generation, or play it, or both."""
    seed = sample_seeds(torch.Generator().manual_seed(options.seed), 1)[0]
    rate, length = pipe.model.config.sample_rate, pipe.length_in_samples(options.seconds)
    block = max(1, rate // 10)
    with contextlib.ExitStack() as stack:
        stack.enter_context(report_out_of_memory())
        player = stack.enter_context(Player(rate)) if options.play else None
        blocks = pipe.stream(
            block=block,
            audio_length_in_s=length / rate,
            prefix=prefix,
            generator=[torch.Generator().manual_seed(seed)],
            **sampling_arguments(options, pipe),
        )
        with tqdm(blocks, desc="blocks of 0.1 s", total=math.ceil(length / block)) as progress:
            audio = audio_of(progress, options)
            audio = audio if player is None else player.playing(audio)
            if options.stream is None:
                collections.deque(audio, maxlen=0)  # plays every block
            else:
                write_stream(options.stream, audio, length, rate)
        if player is not None:
            player.finish()
    text = text_stream(options.stream)
    if options.stream is not None:
        say(f"{length / rate:.1f} s of audio -> {printable(options.stream)}", text)
    if player is not None:
        say(player.report(), text)


def audio_of(blocks: Iterable[tuple[torch.Tensor, Generation]], options: argparse.Namespace) -> Iterator[np.ndarray]:
    """Yield the audio of each block, (L,); raise UserError if its likelihoods are not finite."""
    for audio, generation in blocks:
        require_finite(generation.log_likelihood.cpu().numpy(), options)
        yield audio[0, 0].cpu().numpy()
