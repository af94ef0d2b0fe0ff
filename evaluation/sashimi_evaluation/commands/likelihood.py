"""``sashimi-evaluate likelihood``: bits per sample of recordings under diffusion and autoregressive pipelines."""

import argparse
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from sashimi_diffusion.command_line import Parser, path_argument, positive, select_device, whole_number
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.likelihood.dequantization import PCM
from sashimi_diffusion.likelihood.diffusion import DEQUANTIZATIONS
from sashimi_diffusion.likelihood.flow_ode import LEAST_TOLERANCE, METHODS, Integrator
from sashimi_diffusion.output_files import check_output_files
from sashimi_diffusion.terminal import printable, say
from sashimi_evaluation.commands.resampling import resampling_of
from sashimi_evaluation.likelihood_comparison import (
    COMPARABLE,
    Comparison,
    Recording,
    Settings,
    compare_likelihoods,
    input_files,
)
from sashimi_evaluation.metrics.intervals import Interval
from sashimi_evaluation.report.record import aligned, versions, write_json_report

EXAMPLES = """examples:
  sashimi-evaluate likelihood recordings --pipeline sashimi-digits --pattern "{label}_{speaker}_{index}"
  sashimi-evaluate likelihood recordings --pipeline runs/diffusion --pipeline runs/autoregressive --clips 50
"""


def build_parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        prog="sashimi-evaluate likelihood",
        description="Bits per sample of the same recordings under diffusion pipelines (probability-flow ODE) and "
        "autoregressive ones.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("recordings", type=path_argument, help="folder of real recordings that no pipeline was trained on")
    add("--pipeline", action="append", required=True, metavar="P", help="name or folder of a pipeline; several times")
    add("--pattern", metavar="P", help='file names of the recordings, e.g. "{label}_{speaker}_{index}"')
    add("--where", action="append", metavar="FIELD=A,B", help="use only recordings with these values (default: all)")
    add("--clips", type=positive, default=20, metavar="N", help="largest number of recordings, evenly spread")
    add("--seconds", type=float, metavar="S", help="longest part of each recording (default: the training length)")
    add("--rms", type=float, metavar="R", help="level of the training recordings (default: that on the card)")
    add(
        "--quantization",
        choices=(PCM, "mu-law", "linear"),
        help="pcm has 16 bits, the others 8 (default: that of the autoregressive pipelines, or pcm without one)",
    )
    add("--dequantization", choices=DEQUANTIZATIONS, default="uniform", help="how samples become real numbers")
    add("--method", choices=METHODS, default="rk45", help="integrator of the ODE")
    add("--steps", type=positive, metavar="N", help=f"steps of the method heun (default: {Integrator.steps})")
    add(
        "--tolerance",
        type=float,
        metavar="T",
        help=f"relative and absolute tolerance of the method rk45 (default: {Integrator.rtol:g})",
    )
    add("--hutchinson", type=positive, default=1, metavar="N", help="probes of the trace for each draw")
    add("--draws", type=positive, default=1, metavar="N", help="draws of the dequantization")
    add("--bound-draws", type=whole_number, default=16, metavar="N", help="draws of the variational bound; 0: none")
    add("--resamples", type=positive, default=200, metavar="N", help="bootstrap resamples of each interval")
    add("--seed", type=whole_number, default=0, help="seed of the draws, the probes and the bootstrap")
    add("--json", type=path_argument, default=Path("likelihood.json"), metavar="FILE", help="JSON report")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    return parser


def likelihood(arguments: Sequence[str]) -> None:
    """Run the command.

    Raises:
        UserError: a folder, a pipeline or an option cannot be used.
    """
    options = build_parser().parse_args(arguments)
    _check_numbers(options)
    check_output_files({"--json": options.json}, input_files(options.recordings, options.pipeline), new_folders=True)
    tolerance = Integrator.rtol if options.tolerance is None else options.tolerance
    settings = Settings(
        quantization=options.quantization,
        clips=options.clips,
        seconds=options.seconds,
        rms=options.rms,
        bound_draws=options.bound_draws,
        resampling=resampling_of(options),
        estimator={
            "method": options.method,
            "steps": options.steps or Integrator.steps,
            "rtol": tolerance,
            "atol": tolerance,
            "hutchinson": options.hutchinson,
            "draws": options.draws,
            "dequantization": options.dequantization,
        },
    )
    comparison = compare_likelihoods(
        options.recordings,
        options.pipeline,
        settings,
        options.pattern,
        _fields(options.where),
        select_device(options.device),
        _bar,
    )
    command = shlex.join(["sashimi-evaluate", "likelihood", *arguments])
    write_json_report(options.json, json_record(comparison, settings, command))
    say(table(comparison, settings))
    say(f"\n-> {printable(options.json)}")


def table(comparison: Comparison, settings: Settings) -> str:
    """Return the table of the terminal: a row for each pipeline, notes, and what is comparable."""
    first = comparison.pipelines[0]
    rows = [["pipeline", "kind", "bits per sample", "error of the estimate", "variational bound", "difference"]]
    for own in comparison.pipelines:
        error = comparison.standard_error(own)
        bound = "-" if own.bound is None else f"{comparison.mean(own.bound):.3f}"
        difference = "-" if own is first else _with_interval(comparison, own.bits - first.bits, settings, sign="+")
        known = f"{error:.4f}" if math.isfinite(error) else "one draw, one probe"
        row = [printable(own.name), own.kind, _with_interval(comparison, own.bits, settings)]
        rows.append([*row, "exact" if own.kind == "autoregressive" else known, bound, difference])
    seconds = comparison.lengths.sum() / comparison.rate
    notes = [
        f"{len(comparison.recordings)} recordings, {seconds:.1f} s at {comparison.rate} Hz, {comparison.quantization}; "
        f"the difference is that from {printable(first.name)}",
        *comparison.notes,
        *(
            f"{printable(own.name)}: the recordings were scaled to a root mean square of {own.rms:g}"
            for own in comparison.pipelines
            if own.rms is not None
        ),
        COMPARABLE,
    ]
    return "\n".join([*aligned(rows), "", *notes])


def json_record(comparison: Comparison, settings: Settings, command: str) -> dict[str, Any]:
    """Return the content of the JSON report."""
    first = comparison.pipelines[0]
    return {
        "command": command,
        "versions": versions(),
        "sample_rate": comparison.rate,
        "quantization": {"kind": comparison.quantization.kind, "bits": comparison.quantization.bits},
        "estimator": dict(settings.estimator),
        "comparable": COMPARABLE,
        "notes": list(comparison.notes),
        "pipelines": [
            {
                "name": own.name,
                "kind": own.kind,
                "rms": own.rms,
                "bits_per_sample": comparison.mean(own.bits),
                "interval": _ends(comparison.interval(own.bits, settings.resampling)),
                "standard_error": _finite(comparison.standard_error(own)),
                "variational_bound": None if own.bound is None else comparison.mean(own.bound),
                "difference": comparison.mean(own.bits - first.bits),
                "difference_interval": _ends(comparison.interval(own.bits - first.bits, settings.resampling)),
            }
            for own in comparison.pipelines
        ],
        "recordings": [
            {
                "file": str(recording.file),
                "samples": len(recording.waveform),
                "bits_per_sample": {own.name: float(own.bits[index]) for own in comparison.pipelines},
                "standard_error": {own.name: _finite(own.errors[index]) for own in comparison.pipelines},
            }
            for index, recording in enumerate(comparison.recordings)
        ],
    }


def _with_interval(comparison: Comparison, values: np.ndarray, settings: Settings, sign: str = "") -> str:
    interval = comparison.interval(values, settings.resampling)
    ends = "" if interval is None else f" [{interval.low:{sign}.3f}, {interval.high:{sign}.3f}]"
    return f"{comparison.mean(values):{sign}.3f}{ends}"


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None else [interval.low, interval.high]


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _bar(recordings: Sequence[Recording]) -> Any:
    return tqdm(recordings, desc="likelihood", unit="recording", leave=False, disable=not sys.stderr.isatty())


def _fields(texts: Sequence[str] | None) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    for text in texts or []:
        name, separator, values = text.partition("=")
        if not separator or not name or not values:
            raise UserError(f"--where {printable(text)}: expected FIELD=VALUE or FIELD=VALUE,VALUE")
        fields[name] = values.split(",")
    return fields


def _check_numbers(options: argparse.Namespace) -> None:
    for name in ("seconds", "rms"):
        value = getattr(options, name)
        if value is not None and not (math.isfinite(value) and value > 0):
            raise UserError(f"--{name} is {value:g}, expected a number above 0")
    for name, method in (("steps", "heun"), ("tolerance", "rk45")):
        if getattr(options, name) is not None and options.method != method:
            raise UserError(f"--{name} is for --method {method}, and the method is {options.method}: leave it out")
    if options.tolerance is not None and not LEAST_TOLERANCE <= options.tolerance < 1:
        raise UserError(f"--tolerance is {options.tolerance:g}, expected a number from {LEAST_TOLERANCE:g} to below 1")
    if not 0 <= options.bound_draws <= 1_000_000:
        raise UserError(f"--bound-draws is {options.bound_draws}, expected a whole number from 0 to 1000000")
    resampling_of(options)
