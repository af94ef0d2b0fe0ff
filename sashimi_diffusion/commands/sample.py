"""``sashimi-sample``: generate wav files with a pipeline, with a contact sheet and a record of all settings."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from accelerate import PartialState

from sashimi_diffusion.arguments import short_form
from sashimi_diffusion.bundled import BUNDLED, bundled_folders
from sashimi_diffusion.command_line import Parser, path_argument, run, select_device
from sashimi_diffusion.commands.given_files import given_paths, is_given
from sashimi_diffusion.commands.sample_autoregressive import sample_autoregressive
from sashimi_diffusion.commands.sample_diffusion import sample_diffusion
from sashimi_diffusion.commands.stream import stream_argument
from sashimi_diffusion.commands.vocoding import sample_vocoder
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.generation import ENGINES, WEIGHTS
from sashimi_diffusion.launch import prints_error, require_all_processes, require_same_count
from sashimi_diffusion.paths import read_json
from sashimi_diffusion.pipelines import is_autoregressive, resolve_pipeline
from sashimi_diffusion.pipelines.schedule import DEFAULT_JUMPS
from sashimi_diffusion.schedulers.compatible import ALL_SCHEDULERS
from sashimi_diffusion.terminal import printable, say
from sashimi_kernels.allocation import keep_freed_memory

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
GIVEN_AUDIO = ("audio", "strength", "keep", "continue", "jumps", "window", "overlap")
VOCODER_ONLY = ("resynthesize", "mel")
DIFFUSION_ONLY = (
    *("steps", "scheduler", "label", "speaker", "guidance_scale", "no_cuda_graph"),
    *(*GIVEN_AUDIO, *VOCODER_ONLY),
)
AUTOREGRESSIVE_ONLY = (
    *("prefix", "temperature", "top_p", "top_k", "engine", "weights", "stream"),
    *("sort_by_likelihood", "likelihood_window"),
)
_MOST_CLIPS = 1_000_000_000
NOT_STREAMED = ("num_samples", "sort_by_likelihood", "likelihood_window", "overwrite")

STEPS_HELP = (
    "number of sampling steps (default: all steps of the training schedule with DiffWave's sampler, 6 with "
    "diffwave-fast, 50 with other samplers, its own number with a distilled pipeline)"
)
GUIDANCE_HELP = "scale of classifier-free guidance; 1 is no guidance (default: that of the pipeline, if it has labels)"
LABEL_HELP = (
    "name or index of a class; repeat the option or separate by commas for several, which alternate (default: all "
    "classes)"
)
SPEAKER_HELP = (
    "name or index of a speaker, or several like --label, which alternate after each round of classes (default: all "
    "speakers)"
)

WINDOW_HELP = (
    "discard these fractions of the least likely and the most likely clips; 0.4 0.05 is the protocol of the SaShiMi "
    "paper; all clips are written first, and these files are removed at the end (default: keep all clips)"
)

PLAY_HELP = (
    "play on the sound card: one clip while an autoregressive pipeline generates it, written to --stream at most; the "
    "finished files of a diffusion pipeline"
)
STREAM_HELP = "write one clip block by block to this wav file, not to --out; -: the standard output"
WEIGHTS_HELP = (
    "format of the weights in memory (default: float32, which is exact, or int16 with --play and the engine numba); "
    "fewer bytes are faster for one clip on a CPU and change the probabilities slightly"
)

AUDIO_HELP = (
    "recording, or folder of recordings, from which clips are made, one of each unless --num-samples says otherwise; "
    "without --label, clips have no class"
)
STRENGTH_HELP = (
    "vary it: 0.1 changes little, 1 everything (the share of the noise schedule that is run); for a vocoder, vary what "
    "Griffin-Lim makes of the mel spectrogram"
)
KEEP_HELP = "keep these parts in seconds exactly and generate the rest, as in 0:0.25,0.5:"
JUMPS_HELP = f"repetitions of each stretch of steps with --keep and --continue (default: {DEFAULT_JUMPS})"
LONG_WINDOW_HELP = (
    "denoise overlapping windows of this length together, for clips far beyond the training length (default: one "
    "window; the training length for --audio that is longer; for a vocoder, what needs about 1 GB of memory)"
)
RESYNTHESIZE_HELP = (
    "vocoder: generate these recordings again from their mel spectrograms, files or folders with all sub-folders; "
    "each clip is exactly as long as its recording, at the rate of the model"
)
MEL_HELP = (
    "vocoder: generate from these log-mel spectrograms, .npy files of shape (bands, frames) or (1, bands, frames)"
)

EXAMPLES = """examples:
  sashimi-sample --steps 200                                    ten digits with the bundled pipeline, in samples/
  sashimi-sample --label 7 --num-samples 4 --seed 1
  sashimi-sample --scheduler dpmsolver++-sde-karras --steps 20  ten times fewer steps
  sashimi-sample --seconds 10 --window 0.64                     long clips from windows of the training length
  sashimi-sample --audio word.wav --strength 0.5 --num-samples 4
  sashimi-sample --audio word.wav --keep 0:0.2,0.35:            generate 0.2 s to 0.35 s again
  sashimi-sample --audio word.wav --continue --seconds 5
  sashimi-sample --list                                         the bundled pipelines
  sashimi-sample --pipeline runs/mine/pipeline --seconds 4 --out four-seconds
  sashimi-sample --pipeline runs/piano/pipeline --prefix start.wav --seconds 8 --top-p 0.95
  sashimi-sample --pipeline runs/piano/pipeline --stream endless.wav --seconds 600
  sashimi-sample --pipeline runs/piano/pipeline --play --seconds 60
  sashimi-sample --pipeline runs/vocoder/pipeline --resynthesize recordings --scheduler unipc-karras --steps 6
  accelerate launch -m sashimi_diffusion.commands.sample --num-samples 2048 --batch-size 32
"""


def build_parser() -> Parser:
    """Return the argument parser of the command."""
    parser = Parser(
        prog="sashimi-sample",
        description="Generate audio: wav files, contact_sheet.png and samples.json in one folder.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("--pipeline", default="sashimi-digits", help="folder, name of a bundled pipeline, or hub id (owner/name)")
    add("--list", action="store_true", help="print the bundled pipelines and exit")
    add(
        "--num-samples",
        type=int,
        metavar="N",
        help="number of waveforms (default: 10, or one for each file of --audio)",
    )
    add("--batch-size", type=int, default=10, metavar="B", help="waveforms in a batch; does not change the audio")
    add("--seconds", type=float, metavar="S", help="length of each waveform in seconds (default: the training length)")
    add("--seed", type=int, default=0, help="random seed; the same seed gives the same audio")
    add("--device", default="auto", help="auto (CUDA if available), cpu, cuda, cuda:1, ...")
    add("--dtype", choices=list(DTYPES), default="float32", help="precision of the model")
    add("--out", type=path_argument, default=Path("samples"), metavar="DIR", help="output folder, without clips")
    add("--overwrite", action="store_true", help="first remove the clips that samples.json in the output folder names")
    add("--play", action="store_true", help=PLAY_HELP)
    add = parser.add_argument_group("diffusion pipelines").add_argument
    add("--steps", type=int, help=STEPS_HELP)
    add("--scheduler", metavar="NAME", help=f"sampler (default: that of the pipeline): {', '.join(ALL_SCHEDULERS)}")
    add("--label", action="append", metavar="CLASS", help=LABEL_HELP)
    add("--speaker", action="append", metavar="NAME", help=SPEAKER_HELP)
    add("--guidance-scale", type=float, metavar="G", help=GUIDANCE_HELP)
    add("--no-cuda-graph", action="store_true", help="do not record and replay the steps on a CUDA device")
    add = parser.add_argument_group("given and long audio (diffusion pipelines)").add_argument
    add("--audio", type=path_argument, metavar="PATH", help=AUDIO_HELP)
    add("--strength", type=float, metavar="S", help=STRENGTH_HELP)
    add("--keep", metavar="RANGES", help=KEEP_HELP)
    add("--continue", action="store_true", help="continue it until the clip has --seconds")
    add("--jumps", type=int, metavar="N", help=JUMPS_HELP)
    add("--window", type=float, metavar="SECONDS", help=LONG_WINDOW_HELP)
    add("--overlap", type=float, metavar="SECONDS", help="overlap of neighboring windows (default: a quarter of one)")
    add = parser.add_argument_group("vocoders").add_argument
    add("--resynthesize", type=path_argument, nargs="+", metavar="PATH", help=RESYNTHESIZE_HELP)
    add("--mel", type=path_argument, nargs="+", metavar="FILE", help=MEL_HELP)
    add = parser.add_argument_group("autoregressive pipelines").add_argument
    add("--prefix", type=path_argument, metavar="FILE", help="recording that every clip continues")
    add(
        "--temperature",
        type=float,
        metavar="T",
        help="sampling temperature; 0 is greedy (default: that of the pipeline)",
    )
    add(
        "--top-p",
        type=float,
        metavar="P",
        help="probability of nucleus sampling; 1: all tokens (default: that of the pipeline)",
    )
    add("--top-k", type=int, metavar="K", help="sample from the K most likely tokens (default: all tokens)")
    add("--engine", choices=ENGINES, help="engine that runs the recurrence (default: auto, the fastest available)")
    add("--weights", choices=WEIGHTS, help=WEIGHTS_HELP)
    add("--stream", type=stream_argument, metavar="FILE", help=STREAM_HELP)
    add("--sort-by-likelihood", action="store_true", help="number the files in ascending order of likelihood")
    add("--likelihood-window", type=float, nargs=2, metavar=("LOW", "HIGH"), help=WINDOW_HELP)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""

    def command() -> None:
        options = build_parser().parse_args(arguments)
        if options.list:
            say(bundled_table())
            return
        require_all_processes()
        keep_freed_memory()
        sample(options)

    return run(command, prints_error)


def bundled_table(bundled: Path = BUNDLED) -> str:
    """Return a line for each pipeline in the folder ``bundled``: name, kind, audio, labels, parameters."""
    rows = []
    for name, folder in bundled_folders(bundled).items():
        config = read_json(folder / "model" / "config.json", "the config of a network")
        kind = "autoregressive" if is_autoregressive(folder) else "diffusion"
        audio = f"{config['sample_rate'] / 1000:g} kHz, {config['sample_size'] / config['sample_rate']:g} s"
        words = " ".join(map(str, config.get("class_names") or ()))
        speakers = " ".join(map(str, config.get("speaker_names") or ()))
        rows.append((name, kind, audio, ", ".join(filter(None, [words, speakers]))))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    columns = [[row[column].ljust(width) for column, width in enumerate(widths)] + [row[3]] for row in rows]
    return "\n".join("  ".join(column).rstrip() for column in columns)


def sample(options: argparse.Namespace) -> None:
    """Generate audio with the pipeline that the options name.

    Raises:
        UserError: the options do not fit the pipeline or the machine, or memory or disk space is exhausted.
    """
    if options.stream is not None:
        require_one_clip(options, "--stream writes one clip")
    folder = resolve_pipeline(options.pipeline)
    autoregressive = is_autoregressive(folder)
    _require_options_of(autoregressive, options)
    vocoder = bool(options.resynthesize or options.mel)
    options.audio_files = [] if vocoder else given_paths(options)
    count = (len(options.audio_files) or 10) if options.num_samples is None else options.num_samples
    if not 1 <= count <= _MOST_CLIPS:
        raise UserError(f"--num-samples is {short_form(count)}, expected 1 to {_MOST_CLIPS:,}")
    if options.batch_size < 1:
        raise UserError(f"--batch-size is {short_form(options.batch_size)}, expected at least 1")
    if not 0 <= options.seed < 2**63:
        raise UserError(f"--seed is {options.seed}, expected a number from 0 to 2^63 - 1")
    device = select_device(options.device)
    state = PartialState(cpu=device.type == "cpu")
    require_same_count(state.num_processes)
    if state.num_processes > 1:
        device = state.device
    if state.num_processes > 1 and options.stream is not None:
        raise UserError("--stream writes one clip: start one process, without a launcher")
    if state.num_processes > 1 and options.play:
        raise UserError("--play plays on one sound card: start one process, without a launcher")
    if autoregressive and options.play:
        require_one_clip(options, "--play plays one clip of an autoregressive pipeline")
    if vocoder:
        sample_vocoder(options, folder, device, DTYPES[options.dtype], state)
        return
    options.num_samples = count
    run_pipeline = sample_autoregressive if autoregressive else sample_diffusion
    run_pipeline(options, folder, device, DTYPES[options.dtype], state)


def _require_options_of(autoregressive: bool, options: argparse.Namespace) -> None:
    """Raise UserError if an option is given that only applies to pipelines of the other kind."""
    for name in DIFFUSION_ONLY if autoregressive else AUTOREGRESSIVE_ONLY:
        if is_given(getattr(options, name)):
            flag, kind = f"--{name.replace('_', '-')}", "an autoregressive" if autoregressive else "a diffusion"
            advice = "continue a recording with --prefix" if name == "audio" else "leave it out"
            raise UserError(f"{flag} does not apply: {printable(options.pipeline)} is {kind} pipeline; {advice}")


def require_one_clip(options: argparse.Namespace, reason: str) -> None:
    """Raise UserError if an option is given that a stream, which is one clip in one file or none, would ignore."""
    for name in NOT_STREAMED:
        # A stream is one clip.
        if getattr(options, name) not in (None, False) and (name, options.num_samples) != ("num_samples", 1):
            raise UserError(f"--{name.replace('_', '-')} does not apply: {reason}; leave it out")


if __name__ == "__main__":
    sys.exit(main())
