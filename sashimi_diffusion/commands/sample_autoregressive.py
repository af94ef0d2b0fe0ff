"""``sashimi-sample`` with an autoregressive pipeline."""

import argparse
import hashlib
import math
import shlex
import sys
import time
import wave
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from tqdm import tqdm

from sashimi_diffusion.commands.memory import explained_exhaustion, peak_memory
from sashimi_diffusion.commands.output import SHEET_CLIPS, prepare_folder, share_of_batches, write_record
from sashimi_diffusion.data.audio import read_audio, resample, write_audio
from sashimi_diffusion.data.pictures import contact_sheet
from sashimi_diffusion.files import writing
from sashimi_diffusion.generation.likelihood import likelihood_window
from sashimi_diffusion.generation.runaway import runaway_second
from sashimi_diffusion.pipelines import SashimiAutoregressivePipeline, hash_pipeline, sample_seeds


@dataclass
class Clip:
    """A clip to generate, and its likelihood.

    Args:
        index: position among all clips.
        seed: seed of its generator.
        file: name of the wav file; None if the clip is not kept.
        log_likelihood: log-likelihood of the generated samples, without the prefix, in nats.
        bits_per_sample: negative log-likelihood per generated sample in bits.
        runaway_second: time in seconds at which the clip turns into noise, or None.
    """

    index: int
    seed: int
    file: str | None = None
    log_likelihood: float = 0.0
    bits_per_sample: float = 0.0
    runaway_second: float | None = None


def sample_autoregressive(
    options: argparse.Namespace, folder: Path, device: torch.device, dtype: torch.dtype, state: PartialState
) -> None:
    """Generate clips, divided among the processes of ``accelerate launch``, or stream one clip.

    Raises:
        UserError: the options do not fit the pipeline or the machine, or memory or disk space is exhausted.
    """
    pipe = SashimiAutoregressivePipeline.from_pretrained(folder, torch_dtype=dtype).to(device)
    prefix = None if options.prefix is None else read_prefix(options.prefix, pipe)
    if options.stream is not None:
        stream(options, pipe, prefix)
        return
    length, rate = pipe.length_in_samples(options.seconds), pipe.model.config.sample_rate
    seeds = sample_seeds(torch.Generator().manual_seed(options.seed), options.num_samples)
    clips = [Clip(index, seed) for index, seed in enumerate(seeds)]
    if options.likelihood_window is not None:
        likelihood_window(np.zeros(len(clips)), *options.likelihood_window)  # raises its errors before generation
    prepare_folder(options.out, 2 * length * len(clips))

    own_batches = share_of_batches(clips, options.batch_size, state)
    started = time.perf_counter()
    own: list[tuple[Clip, np.ndarray]] = []
    for batch in tqdm(own_batches, desc="batches", disable=not state.is_main_process or len(own_batches) < 2):
        own += zip(batch, generate(pipe, options, prefix, batch), strict=True)
    generated = sorted(gather_object(own), key=lambda pair: pair[0].index)
    elapsed = time.perf_counter() - started
    if state.is_main_process:
        kept = select_clips(options, generated)
        with writing(f"to {options.out}"):
            write_clips(options.out, kept, rate)
            record = make_record(options, folder, pipe, [clip for clip, _ in generated], elapsed, length)
            write_record(options.out, record)
        print(summary(options.out, generated, kept, elapsed, length, rate, peak_memory(device)))
    if state.num_processes > 1:
        state.destroy_process_group()


def read_prefix(path: Path, pipe: SashimiAutoregressivePipeline) -> np.ndarray:
    """Read a recording at the sample rate of the pipeline, (L,); print a note if it is resampled.

    Raises:
        UserError: the file is not audio, or has no sound.
    """
    waveform = read_audio(path)
    pipe.prefix_tokens(waveform)  # raises its errors before resampling, which adds ripples to a constant waveform
    recorded, rate = soundfile.info(path).samplerate, pipe.model.config.sample_rate
    if recorded == rate:
        return waveform
    print(f"note: {path} is resampled from {recorded} Hz to the model's {rate} Hz", file=sys.stderr)
    return resample(waveform, recorded, rate)


def generate(
    pipe: SashimiAutoregressivePipeline, options: argparse.Namespace, prefix: np.ndarray | None, batch: Sequence[Clip]
) -> list[np.ndarray]:
    """Generate the waveforms (L,) of a batch, and set the likelihoods of its clips."""
    with explained_exhaustion():
        output = pipe(
            batch_size=len(batch),
            audio_length_in_s=options.seconds,
            prefix=prefix,
            generator=[torch.Generator().manual_seed(clip.seed) for clip in batch],
            **sampling_arguments(options),
        )
    generated = output.audios.shape[-1] - output.prefix_length
    for clip, waveform, log_likelihood in zip(batch, output.audios[:, 0], output.log_likelihoods, strict=True):
        clip.log_likelihood = float(log_likelihood)
        clip.bits_per_sample = -clip.log_likelihood / generated / math.log(2)
        clip.runaway_second = runaway_second(waveform, pipe.model.config.sample_rate)
    return list(output.audios[:, 0])


def sampling_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of the pipeline that determine how samples are drawn."""
    return {
        "temperature": 1.0 if options.temperature is None else options.temperature,
        "top_k": options.top_k,
        "top_p": 1.0 if options.top_p is None else options.top_p,
        "engine": options.engine or "auto",
    }


def select_clips(
    options: argparse.Namespace, generated: list[tuple[Clip, np.ndarray]]
) -> list[tuple[Clip, np.ndarray]]:
    """Return the clips to keep, in the order of their files."""
    kept = generated
    if options.likelihood_window is not None:
        scores = [clip.log_likelihood for clip, _ in kept]
        kept = [kept[index] for index in likelihood_window(scores, *options.likelihood_window)]
    if options.sort_by_likelihood:
        kept = sorted(kept, key=lambda pair: pair[0].log_likelihood)
    return kept


def write_clips(out: Path, kept: list[tuple[Clip, np.ndarray]], sample_rate: int) -> None:
    """Write a wav file for each clip, and a contact sheet of the first clips."""
    for number, (clip, waveform) in enumerate(kept):
        clip.file = f"{number:04d}.wav"
        write_audio(out / clip.file, waveform, sample_rate)
    titles = [f"{number:04d}" for number in range(min(len(kept), SHEET_CLIPS))]
    contact_sheet([waveform for _, waveform in kept[:SHEET_CLIPS]], sample_rate, titles).save(out / "contact_sheet.png")


def make_record(
    options: argparse.Namespace,
    folder: Path,
    pipe: SashimiAutoregressivePipeline,
    clips: Sequence[Clip],
    elapsed: float,
    length: int,
) -> dict[str, Any]:
    """Return the content of ``samples.json``, which is sufficient to generate the same clips again."""
    prefix = None
    if options.prefix is not None:
        prefix = {"file": str(options.prefix), "sha256": hashlib.sha256(options.prefix.read_bytes()).hexdigest()}
    return {
        "command": shlex.join(["sashimi-sample", *sys.argv[1:]]),
        "seed": options.seed,
        "pipeline": {"name": options.pipeline, "model": type(pipe.model).__name__, "sha256": hash_pipeline(folder)},
        **sampling_arguments(options),
        "prefix": prefix,
        "likelihood_window": options.likelihood_window,
        "sorted_by_likelihood": options.sort_by_likelihood,
        "dtype": options.dtype,
        "device": pipe.device.type,
        "sample_rate": pipe.model.config.sample_rate,
        "samples_per_clip": length,
        "samples_per_second": round(len(clips) * length / elapsed, 1),
        "samples": [asdict(clip) for clip in clips],
    }


def summary(
    out: Path,
    generated: list[tuple[Clip, np.ndarray]],
    kept: list[tuple[Clip, np.ndarray]],
    elapsed: float,
    length: int,
    sample_rate: int,
    peak: int | None,
) -> str:
    """Return one line about the generated audio, the time and the memory."""
    clips, samples = [clip for clip, _ in generated], len(generated) * length
    runaways = sum(clip.runaway_second is not None for clip in clips)
    selected = f", {len(kept)} kept" if len(kept) < len(generated) else ""
    noise = f", {runaways} ran away into noise (see samples.json)" if runaways else ""
    memory = "unknown" if peak is None else f"{peak / 1e6:.0f} MB"
    factor = elapsed / samples * sample_rate
    return (
        f"{len(generated)} samples{selected}, {samples / sample_rate:.1f} s of audio in {elapsed:.1f} s: "
        f"{samples / elapsed:.0f} samples/s, real-time factor {factor:.2f} (computing / audio), "
        f"{np.mean([clip.bits_per_sample for clip in clips]):.3f} bits per sample, peak memory {memory}{noise} -> {out}"
    )


def stream(options: argparse.Namespace, pipe: SashimiAutoregressivePipeline, prefix: np.ndarray | None) -> None:
    """Write one clip to a wav file during generation; the file is valid after every block, also if interrupted."""
    seed = sample_seeds(torch.Generator().manual_seed(options.seed), 1)[0]
    rate, length = pipe.model.config.sample_rate, pipe.length_in_samples(options.seconds)
    blocks = pipe.stream(
        block=max(1, rate // 10),
        audio_length_in_s=length / rate,
        prefix=prefix,
        generator=[torch.Generator().manual_seed(seed)],
        **sampling_arguments(options),
    )
    with writing(f"to {options.stream}"), options.stream.open("wb") as raw, wave.open(raw) as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        for audio, _ in tqdm(blocks, desc="blocks of 0.1 s", total=math.ceil(length / max(1, rate // 10))):
            pcm = (audio[0, 0].cpu().numpy().astype(np.float64) * 2**15).round().astype("<i2")
            file.writeframes(pcm.tobytes())  # also updates the header
            raw.flush()
    print(f"{length / rate:.1f} s of audio -> {options.stream}")
