"""``sashimi-evaluate vocoder``: compare clips of a vocoder with the recordings that they were generated from."""

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from sashimi_diffusion.command_line import Parser, path_argument
from sashimi_diffusion.output_files import check_output_files
from sashimi_diffusion.strict_json import strict
from sashimi_diffusion.terminal import printable, say, supports
from sashimi_evaluation.clips import open_sets
from sashimi_evaluation.commands.resampling import resampling_of
from sashimi_evaluation.metrics import cepstral_distortion, stft_distance
from sashimi_evaluation.metrics.harmonics import PITCH_HZ, VOICED
from sashimi_evaluation.metrics.metric import Metric
from sashimi_evaluation.metrics.speech_quality import require_package
from sashimi_evaluation.report.record import WORDS, aligned, versions, write_json_report
from sashimi_evaluation.vocoder import PairErrors, find_pairs, measure_pairs, vocoder_metrics

EXAMPLES = """examples:
  sashimi-sample --pipeline runs/vocoder/pipeline --resynthesize recordings --out copies
  sashimi-evaluate vocoder copies --reference recordings
  sashimi-evaluate vocoder all=copies six=fast --reference recordings --stoi
"""
PESQ_HELP = (
    "also PESQ, at 16 kHz (wide band), or 8 kHz (narrow band) for lower rates; needs the package pesq, whose license "
    "notice permits few uses"
)
STOI_HELP = "also STOI, the short-time objective intelligibility; needs the package pystoi"
SPEECH = {"pesq": "pesq", "stoi": "pystoi"}
"""The package that each of these options needs."""


def build_parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        prog="sashimi-evaluate vocoder",
        description="Compare clips of a vocoder with the recordings that they were generated from, by file name: "
        "multi-resolution STFT distance, mel-cepstral distortion, errors of pitch and voicing, frame by frame.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("samples", nargs="+", metavar="[NAME=]DIR", help="folders of generated clips; each one is a column")
    add("--reference", type=path_argument, required=True, metavar="DIR", help="the recordings")
    add("--stoi", action="store_true", help=STOI_HELP)
    add("--pesq", action="store_true", help=PESQ_HELP)
    add("--resamples", type=int, default=200, metavar="N", help="bootstrap resamples of each interval")
    add("--seed", type=int, default=0, help="seed of the bootstrap")
    add("--json", type=path_argument, default=Path("vocoder.json"), metavar="FILE", help="JSON report")
    return parser


def vocoder(arguments: Sequence[str]) -> None:
    """Run the command.

    Raises:
        UserError: a folder, a file or an option cannot be used.
    """
    options = build_parser().parse_args(arguments)
    resampling = resampling_of(options)
    speech = [name for name in SPEECH if getattr(options, name)]
    for name in speech:
        require_package(SPEECH[name], f"--{name}")
    found = {clips.name: find_pairs(clips, options.reference) for clips in open_sets(options.samples, None, False)}
    pairs = {name: own for name, (own, _) in found.items()}
    inputs = [path for own in pairs.values() for pair in own for path in (pair.generated, pair.recording)]
    check_output_files({"--json": options.json}, inputs, new_folders=True)
    for name, (own, missing) in found.items():
        if missing:
            total = len(own) + len(missing)
            say(f"note: {printable(name)} has clips of {len(own)} of {total} recordings", sys.stderr)
    errors = {name: measure_pairs(own, printable(name), speech) for name, own in pairs.items()}
    for name, measured in errors.items():
        if mixed := sum(pair.mixed for pair in measured):
            text = f"mixed down to mono: {mixed} of {len(measured)} pairs have a file with several channels"
            say(f"note: {printable(name)}: {text}", sys.stderr)
    metrics = {name: vocoder_metrics(own, resampling) for name, own in errors.items()}
    write_json_report(options.json, report(options, arguments, errors, metrics))
    say(table(errors, metrics, symbols=supports("".join(WORDS))))
    say(f"\n-> {printable(options.json)}")


def table(
    errors: Mapping[str, Sequence[PairErrors]], metrics: Mapping[str, Sequence[Metric]], symbols: bool = True
) -> str:
    """Return a table with a column for each set, and the notes of its metrics.

    Args:
        errors: pairs of each set by its name.
        metrics: metrics of each set, the same ones for all.
        symbols: whether the text may contain arrows.
    """
    rows = [
        ["", *(printable(name) for name in metrics)],
        ["pairs", *(str(len(own)) for own in errors.values())],
        ["seconds", *(f"{sum(pair.seconds for pair in own):.1f}" for own in errors.values())],
    ]
    for own in zip(*metrics.values(), strict=True):
        arrow = {"lower": "↓", "higher": "↑", "": ""}[own[0].better]
        rows.append([f"{own[0].title} {arrow if symbols else WORDS[arrow]}", *(_cell(metric) for metric in own)])
    notes = [
        f"{printable(name)}: {metric.title}: {metric.note}"
        for name, own in metrics.items()
        for metric in own
        if metric.note
    ]
    return "\n".join([*aligned(rows), *([""] if notes else []), *notes])


def _cell(metric: Metric) -> str:
    if metric.value is None:
        return "-"
    if metric.interval is None:
        return f"{metric.value:.4g}"
    return f"{metric.value:.4g} [{metric.interval.low:.4g}, {metric.interval.high:.4g}]"


def report(
    options: argparse.Namespace,
    arguments: Sequence[str],
    errors: Mapping[str, Sequence[PairErrors]],
    metrics: Mapping[str, Sequence[Metric]],
) -> dict[str, Any]:
    """Return the content of the JSON report: definitions, metrics, and what was measured for each pair."""
    speech = {package: version(package) for name, package in SPEECH.items() if getattr(options, name)}
    return strict(
        {
            "command": shlex.join(["sashimi-evaluate", "vocoder", *arguments]),
            "versions": versions() | speech,
            "resamples": options.resamples,
            "seed": options.seed,
            "reference": str(options.reference),
            "definitions": {
                "stft": {"resolutions": stft_distance.RESOLUTIONS, "floor": stft_distance.FLOOR},
                "mcd": {
                    "coefficients": cepstral_distortion.COEFFICIENTS,
                    "bands": cepstral_distortion.BANDS,
                    "window_seconds": cepstral_distortion.WINDOW_SECONDS,
                    "hop_seconds": cepstral_distortion.HOP_SECONDS,
                    "time_warping": False,
                },
                "pitch": {"range_hz": PITCH_HZ, "voiced": VOICED},
            },
            "sets": [
                {
                    "name": name,
                    "pairs": len(errors[name]),
                    "figures": {metric.key: _record(metric) for metric in own},
                    "per_pair": [asdict(pair) for pair in errors[name]],
                }
                for name, own in metrics.items()
            ],
        }
    )


def _record(metric: Metric) -> dict[str, Any]:
    interval = None if metric.interval is None else [metric.interval.low, metric.interval.high]
    return {"title": metric.title, "value": metric.value, "interval": interval, "note": metric.note}
