"""``sashimi-convert``: convert an official checkpoint into a pipeline folder."""

import argparse
import os
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from sashimi_diffusion.command_line import Parser, path_argument, run
from sashimi_diffusion.data.quantization import QUANTIZATIONS
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.files import folder_written_beside, give_usual_rights, writing
from sashimi_diffusion.interop.autoregressive import (
    DT_TRANSFORMS,
    AutoregressiveOptions,
    convert_autoregressive,
    is_autoregressive_checkpoint,
)
from sashimi_diffusion.interop.diffwave import Conversion, ConversionOptions, convert_diffwave, output_distance
from sashimi_diffusion.interop.pickled_network import read_tensors
from sashimi_diffusion.models import SashimiAutoregressive, WaveNetDenoiser
from sashimi_diffusion.models.base import RANGES
from sashimi_diffusion.paths import entries, is_folder, kind, nearest_existing, status
from sashimi_diffusion.pipelines import SashimiAutoregressivePipeline, SashimiPipeline
from sashimi_diffusion.schedulers.diffwave import MAX_TRAIN_TIMESTEPS
from sashimi_diffusion.terminal import printable, say


class Saveable(Protocol):
    """A pipeline or a network."""

    def save_pretrained(self, folder: Path, /) -> object:
        """Write all files into ``folder``."""


# Returns the object to save and the lines of the summary by their titles.
Convert = Callable[[dict[str, Tensor], argparse.Namespace], tuple[Saveable, dict[str, str]]]

EXAMPLES = """examples:
  sashimi-convert checkpoints/800000.pkl sc09-d128
  sashimi-sample --pipeline sc09-d128 --steps 200
  sashimi-convert sashimi_sc09.pt sc09-autoregressive
  sashimi-convert beethoven.ckpt beethoven --quantization linear --length 128000
  sashimi-convert resnext.pth sc09-classifier

Settings that the file does not contain have the published values by default: 16 kHz and 200 steps for SC09, 22.05 kHz
and 50 steps for a vocoder.
"""


def build_parser() -> Parser:
    """Return the argument parser of the command."""
    parser = Parser(
        prog="sashimi-convert",
        description="Convert an official checkpoint (DiffWave, autoregressive SaShiMi or the SC09 classifier) into a "
        "folder that loads with from_pretrained.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add(
        "checkpoint",
        type=path_argument,
        metavar="OFFICIAL.pkl",
        help="official checkpoint: .pkl, .pt, .pth, .ckpt or .safetensors",
    )
    add("out", type=path_argument, metavar="OUT_DIR", help="output folder, new or empty")
    add(
        "--sample-rate",
        type=_positive(int, RANGES["sample_rate"].high),
        metavar="HZ",
        help="sampling rate (default: 16000, for a vocoder 22050)",
    )
    add(
        "--length",
        type=_positive(int, RANGES["sample_size"].high),
        metavar="N",
        help="training length in samples (default: the length in the file, else 16000)",
    )
    add(
        "--timesteps",
        type=_positive(int, MAX_TRAIN_TIMESTEPS),
        metavar="T",
        help="diffusion steps in training (default: 200, for a vocoder 50)",
    )
    add("--beta-start", type=_positive(float), metavar="B", help="first noise variance (default: 0.0001)")
    add(
        "--beta-end", type=_positive(float), metavar="B", help="last noise variance (default: 0.02, for a vocoder 0.05)"
    )
    add(
        "--dilation-cycle",
        type=_positive(int, RANGES["dilation_cycle"].high),
        metavar="N",
        help="dilation cycle of a WaveNet (default: 12 for 36 layers, 10 for 30)",
    )
    add(
        "--step-on-residual",
        action=argparse.BooleanOptionalAction,
        help="add the step embedding of a WaveNet to the residual path too (default: yes, as the published ones do)",
    )
    add(
        "--stored-nodes",
        action="store_true",
        default=None,
        help="keep the inexact FFT nodes that an older SaShiMi file (checkpoints branch) contains, to reproduce the "
        "official outputs more closely (default: compute exact nodes)",
    )
    add("--quantization", choices=QUANTIZATIONS, help="quantization of an autoregressive model (default: mu-law)")
    add(
        "--dt-transform",
        choices=DT_TRANSFORMS,
        help="step size transform of an autoregressive model; use exp for a version 3 file that was renamed to version "
        "4 (default: exp for version 3, softplus for version 4)",
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    return run(lambda: convert(build_parser().parse_args(arguments)))


def convert(options: argparse.Namespace, convert_tensors: Convert | None = None) -> None:
    """Read, convert and write a checkpoint, and print a summary.

    Args:
        options: the parsed command line.
        convert_tensors: function of the tensors of the checkpoint and the options; it returns the object to save and
            the lines of the summary by their titles. None: :func:`convert_pipeline`.

    Raises:
        UserError: the checkpoint cannot be read or does not fit a known network, an option does not apply to it, or the
            folder is not empty or cannot be written.
    """
    is_new = check_new_folder(options.out)
    pipeline, notes = (convert_tensors or convert_pipeline)(read_tensors(options.checkpoint), options)
    with writing(f"to {printable(options.out)}"):
        if is_new:
            with folder_written_beside(options.out) as folder:
                pipeline.save_pretrained(folder)
        else:
            pipeline.save_pretrained(options.out)
            give_usual_rights(options.out)  # all that is in it is new
    width = max(map(len, notes))
    for name, note in notes.items():
        say(f"{name:<{width}}  {note}")
    say(f"wrote {printable(options.out)}")


def check_new_folder(path: Path) -> bool:
    """Check that a folder can be written; return whether it must be created.

    Raises:
        UserError: the path is no folder or is not empty, or the folder in which it would be created is none or cannot
            be written.
    """
    found = status(path)
    if found is not None and not is_folder(path):
        raise UserError(f"{printable(path)} already exists and is {kind(found)}: choose a new or empty folder")
    if entries(path):
        raise UserError(f"{printable(path)} already exists and is not empty: choose another folder or remove it")
    parent = nearest_existing(path.absolute())
    if not is_folder(parent):
        raise UserError(f"cannot write to {printable(path)}: {printable(parent)} is no folder; choose another place")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {printable(path)}: permission denied; choose another place")
    return found is None


def convert_pipeline(tensors: dict[str, Tensor], options: argparse.Namespace) -> tuple[Saveable, dict[str, str]]:
    """Convert a diffusion or autoregressive checkpoint; return the pipeline and the lines of the summary by title."""
    if is_autoregressive_checkpoint(tensors):
        return _autoregressive(tensors, options)
    return _diffusion(tensors, options)


def _diffusion(tensors: dict[str, Tensor], options: argparse.Namespace) -> tuple[SashimiPipeline, dict[str, str]]:
    refuse_options(options, ("quantization", "dt_transform"), "a diffusion model")
    chosen = ConversionOptions(**_given(options, [field.name for field in fields(ConversionOptions)]))
    conversion = convert_diffwave(tensors, chosen)
    notes = describe(conversion)
    if conversion.model.config.get("parameterization") == "legacy":
        other = convert_diffwave(tensors, replace(chosen, stored_nodes=not chosen.stored_nodes))
        distance = output_distance(conversion.model, other.model, progress=True)
        difference = f"changes the output by up to {distance:.1e} of its maximum"
        notes["FFT nodes"] = (
            f"as stored in the file; computing them exactly {difference}"
            if chosen.stored_nodes
            else f"computed exactly; using the inexact ones of the file (--stored-nodes) {difference}"
        )
    return SashimiPipeline(conversion.model, conversion.scheduler), notes


def _autoregressive(
    tensors: dict[str, Tensor], options: argparse.Namespace
) -> tuple[SashimiAutoregressivePipeline, dict[str, str]]:
    refuse_options(
        options,
        ("timesteps", "beta_start", "beta_end", "dilation_cycle", "step_on_residual", "stored_nodes"),
        "an autoregressive model",
    )
    chosen = AutoregressiveOptions(**_given(options, ["sample_rate", "length", "quantization", "dt_transform"]))
    model, layout = convert_autoregressive(tensors, chosen)
    return SashimiAutoregressivePipeline(model), describe_autoregressive(model, layout)


def _given(options: argparse.Namespace, names: Sequence[str]) -> dict[str, Any]:
    """Return the options called ``names`` that the command line sets."""
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def refuse_options(options: argparse.Namespace, names: Sequence[str], model: str) -> None:
    """Raise UserError if one of the options called ``names`` is set, because it does not apply to this checkpoint."""
    for name in names:
        if getattr(options, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} does not apply: the checkpoint is of {model}; leave it out")


def describe_autoregressive(model: SashimiAutoregressive, layout: str) -> dict[str, str]:
    """Return the lines of the summary of an autoregressive model by their titles."""
    config: Any = model.config
    return {
        "layout": layout,
        "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
        "audio": f"{config.sample_size:,} samples at {config.sample_rate:,} Hz, {config.quantization} in "
        f"{config.num_tokens} levels",
        "network": f"d_model {config.d_model}, {config.n_layers} layers, pool {list(config.pool)}, expand "
        f"{config.expand}, ff {config.ff}, n_state {config.n_state}",
    }


def describe(conversion: Conversion) -> dict[str, str]:
    """Return the lines of the summary of a diffusion model by their titles."""
    config: Any = conversion.model.config
    schedule: Any = conversion.scheduler.config
    parameters = sum(parameter.numel() for parameter in conversion.model.parameters())
    notes = {
        "layout": conversion.layout,
        "parameters": f"{parameters:,}",
        "audio": f"{config.sample_size:,} samples at {config.sample_rate:,} Hz",
        "schedule": f"{schedule.num_train_timesteps} steps, beta {schedule.beta_start:g} to {schedule.beta_end:g}",
    }
    if isinstance(conversion.model, WaveNetDenoiser):
        residual = "also on the residual path (not in the file; if the audio is noise, try --no-step-on-residual)"
        notes["network"] = (
            f"{config.n_layers} layers, dilation cycle {config.dilation_cycle}, "
            f"channels {config.residual_channels}/{config.skip_channels}"
        )
        notes["step embedding"] = residual if config.step_on_residual else "not on the residual path"
    else:
        stages = "U-net" if config.unet else "blocks only in the upward path"
        notes["network"] = (
            f"d_model {config.d_model}, {config.n_layers} layers, pool {list(config.pool)}, expand {config.expand}, "
            f"ff {config.ff}, n_state {config.n_state}, {stages}"
        )
    if config.mel_channels is not None:
        notes["mel"] = f"{config.mel_channels} bands, upsampled by {list(config.mel_upsample)}"
    return notes


def _positive(number_type: type[float], limit: float = 1) -> Callable[[str], float]:
    """Return a parser of positive numbers up to ``limit``, for the ``type`` of an option."""

    def parse(text: str) -> float:
        shown = printable(text[:40])
        try:
            number = number_type(text)
        except ValueError as error:
            expected = "whole number" if number_type is int else "number"
            raise argparse.ArgumentTypeError(f"{shown} is not a {expected}") from error
        if not number > 0:
            raise argparse.ArgumentTypeError(f"{shown} is not a positive number")
        if number > limit:
            raise argparse.ArgumentTypeError(f"{shown} is more than {limit:,}")
        return number

    return parse


if __name__ == "__main__":
    raise SystemExit(main())
