"""``sashimi-evaluate``: evaluate folders of clips against real recordings; write a table, a JSON and an HTML report."""

import argparse
import itertools
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from accelerate import PartialState

from sashimi_diffusion.command_line import Parser, path_argument, run, select_device
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.launch import prints_error, require_all_processes, require_same_count
from sashimi_diffusion.output_files import check_output_files
from sashimi_diffusion.paths import entries
from sashimi_diffusion.terminal import printable, say, supports
from sashimi_evaluation.classifiers.loading import model_folder
from sashimi_evaluation.clips import RECORDS, ClipFolder, open_clips, open_sets, split_held_out
from sashimi_evaluation.commands.evaluation_networks import (
    DEFAULT_CLASSIFIER,
    NO_CLASSIFIER,
    load_classes,
    load_features,
)
from sashimi_evaluation.commands.listening_test import listening_test
from sashimi_evaluation.commands.resampling import resampling_of
from sashimi_evaluation.evaluation import Evaluation, evaluate
from sashimi_evaluation.excerpts import Windows
from sashimi_evaluation.extraction import PROTOCOLS, Settings, extract_features
from sashimi_evaluation.extractors import EMBEDDING, NAMED, sources_of
from sashimi_evaluation.metrics.spectrum import LINES
from sashimi_evaluation.preparation import Preparation, chosen_preparation
from sashimi_evaluation.report.evaluation_page import write_page
from sashimi_evaluation.report.plots import require_matplotlib
from sashimi_evaluation.report.record import WORDS, json_report, text_table, write_json_report

EXAMPLES = """examples:
  sashimi-evaluate samples --reference recordings
  sashimi-evaluate ours=samples theirs=other/samples --reference SpeechCommands --hold-out split=validation
  sashimi-evaluate samples --reference recordings --pattern "{label}_{speaker}_{index}" --hold-out index=0,1,2,3,4
  sashimi-evaluate samples --reference recordings --html report.html
  sashimi-evaluate samples --reference recordings --classifier resnext --protocol sashimi-icml22
  sashimi-evaluate piano --reference recordings --classifier none --window 2
  sashimi-evaluate piano --reference recordings --classifier none --features vggish=vggish.pth --window 0.975 --hop 0.5
  accelerate launch -m sashimi_evaluation.commands.evaluate samples --reference recordings
  sashimi-evaluate listening-test --help
  sashimi-evaluate vocoder --help
  sashimi-evaluate likelihood --help
"""

PATTERN_HELP = 'file names of the recordings, e.g. "{label}_{speaker}_{index}" (default: one folder per class)'
FEATURES_HELP = (
    f"feature extractor for the distances: {NAMED}, with weights on disk, or MODULE:FUNCTION (default: the features of "
    f"the classifier, or {EMBEDDING} without one)"
)
WINDOW_SECONDS_HELP = (
    "cut recordings into excerpts of this duration; a rest shorter than it is left out (default: the beginning of each "
    "file is one clip)"
)
PREPARE_HELP = (
    "prepare the held-out recordings like the training data of the generated clips: rate=HZ,length=SAMPLES,rms=LEVEL, "
    "or none (default: what samples.json and the card of the pipeline say)"
)
LINES_HELP = "frequencies in Hz at which lines in the spectrum are looked for"
WINDOW_HELP = "discard these fractions of the least likely and the most likely clips; the SaShiMi paper uses 0.4 0.05"


def build_parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        prog="sashimi-evaluate",
        description="Evaluate clips of any system, words or other audio, against real recordings.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("samples", nargs="+", metavar="[NAME=]DIR", help="folders of clips; each one is a column of the table")
    add(
        "--reference",
        type=path_argument,
        required=True,
        metavar="DIR",
        help="real clips; the papers use the training set",
    )
    add("--pattern", metavar="P", help=PATTERN_HELP)
    add("--where", action="append", metavar="FIELD=A,B", help="use only recordings with these values (default: all)")
    add("--hold-out", action="append", metavar="FIELD=A,B", help="evaluate these and remove them from the reference")
    add(
        "--held-out",
        type=path_argument,
        metavar="DIR",
        help="folder of real recordings to evaluate like generated clips",
    )
    add("--prepare", metavar="P", help=PREPARE_HELP)
    add("--sample-pattern", metavar="P", help="file names of the samples, for folders without samples.json")
    add(
        "--classifier",
        metavar="C",
        help="name or folder of a classifier (default: the bundled one that knows the classes of the clips: "
        f"{DEFAULT_CLASSIFIER}, words-small; {DEFAULT_CLASSIFIER} if none does); {NO_CLASSIFIER}: no class metrics",
    )
    add("--features", metavar="NAME[=PATH]", help=FEATURES_HELP)
    add("--window", type=float, metavar="SECONDS", help=WINDOW_SECONDS_HELP)
    add("--hop", type=float, metavar="SECONDS", help="time from one excerpt to the next (default: that of --window)")
    add(
        "--protocol",
        choices=PROTOCOLS,
        default="default",
        help="sashimi-icml22: the metrics of the official code, including its errors",
    )
    add("--likelihood-window", type=float, nargs=2, metavar=("LOW", "HIGH"), help=WINDOW_HELP)
    add("--lines", type=float, nargs="+", default=LINES, metavar="HZ", help=LINES_HELP)
    add("--resamples", type=int, default=200, metavar="N", help="bootstrap resamples of each interval")
    add("--seed", type=int, default=0, help="seed of the bootstrap, the splits and the bins")
    add("--json", type=path_argument, default=Path("evaluation.json"), metavar="FILE", help="JSON report")
    add(
        "--html",
        type=path_argument,
        metavar="FILE",
        help="HTML report with spectrograms and players (needs matplotlib)",
    )
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, ...")
    add(
        "--cache-dir",
        type=path_argument,
        metavar="DIR",
        help="folder of the feature cache (default: the cache folder of the user)",
    )
    add("--skip-bad-files", action="store_true", help="warn about unusable files and continue without them")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)

    def command() -> None:
        if arguments[:1] == ["listening-test"]:
            listening_test(arguments[1:])
            return
        if arguments[:1] == ["likelihood"]:
            from sashimi_evaluation.commands.likelihood import likelihood  # it loads pipelines, which take seconds

            likelihood(arguments[1:])
            return
        if arguments[:1] == ["vocoder"]:
            from sashimi_evaluation.commands.vocoder import vocoder

            vocoder(arguments[1:])
            return
        options = build_parser().parse_args(arguments)
        require_all_processes()
        evaluate_folders(options, shlex.join(["sashimi-evaluate", *arguments]))

    return run(command, prints_error)


def evaluate_folders(options: argparse.Namespace, command: str) -> None:
    """Evaluate the folders in the options; write the reports and print the table.

    Raises:
        UserError: a folder, a file or an option cannot be used.
    """
    _check_numbers(options)
    if options.html is not None:
        require_matplotlib()
    windows = windows_of(options)
    device = select_device(options.device)
    state = PartialState(cpu=device.type == "cpu")
    require_same_count(state.num_processes)
    if state.num_processes > 1:
        device = state.device
    sets = open_sets(options.samples, options.sample_pattern, options.skip_bad_files)
    reference, held_out = open_reference(options)
    held_out = prepared(held_out, sets, options.prepare, windows)
    read = [*sets, reference, *([] if held_out is None else [held_out])]
    extractor = load_features(options.features, options.classifier, options.protocol, device)
    classifier, notes = load_classes(options.classifier, sets, read, device)
    _check_outputs(options, None if classifier is None else options.classifier or classifier.name, read)
    settings = settings_of(options, windows)
    extraction = extract_features(sets, reference, held_out, classifier, extractor, settings, notes)
    if state.is_main_process:
        report(evaluate(extraction), options, command)
    if state.num_processes > 1:
        state.destroy_process_group()


def open_reference(options: argparse.Namespace) -> tuple[ClipFolder, ClipFolder | None]:
    """Open the reference and the held-out recordings, if any.

    Raises:
        UserError: an invalid folder, or both --hold-out and --held-out.
    """
    where, hold_out = _fields(options.where, "--where"), _fields(options.hold_out, "--hold-out")
    if hold_out and options.held_out is not None:
        raise UserError("--hold-out and --held-out exclude each other: give one of them")
    if hold_out:
        return split_held_out(options.reference, options.pattern, where, hold_out, options.skip_bad_files)
    reference = open_clips(options.reference, None, options.pattern, where, options.skip_bad_files)
    if options.held_out is None:
        return reference, None
    name = "held-out recordings"
    return reference, open_clips(options.held_out, name, options.pattern, where, options.skip_bad_files)


def windows_of(options: argparse.Namespace) -> Windows | None:
    """Return how recordings are cut into excerpts, or None if they are not.

    Raises:
        UserError: a number is out of its range, or there is --hop but no --window.
    """
    if options.window is None:
        if options.hop is not None:
            raise UserError(f"--hop {options.hop:g} needs excerpts: give their duration with --window SECONDS, too")
        return None
    return Windows(options.window, options.hop)


def prepared(
    held_out: ClipFolder | None, sets: Sequence[ClipFolder], option: str | None, windows: Windows | None = None
) -> ClipFolder | None:
    """Return the held-out recordings with the preparation that ``--prepare`` or the records of the sets name.

    Excerpts have the duration of the window instead of a length of the preparation.

    Raises:
        UserError: the option is invalid, or there are no held-out recordings to prepare.
    """
    if held_out is None:
        if option is not None:
            raise UserError("--prepare is for held-out recordings: give --hold-out or --held-out, too")
        return None
    recorded = {clips.name: clips.recorded for clips in sets if clips.recorded != Preparation()}
    if windows is not None:
        recorded = {name: replace(each, length=None) for name, each in recorded.items()}
    preparation, note = chosen_preparation(option, recorded)
    if windows is not None and preparation.length is not None:
        raise UserError(
            "--prepare length=SAMPLES and --window exclude each other: excerpts have the duration of the window"
        )
    return replace(held_out, preparation=preparation, record_notes=(*held_out.record_notes, *([note] if note else [])))


def settings_of(options: argparse.Namespace, windows: Windows | None = None) -> Settings:
    """Return the settings of the evaluation."""
    return Settings(
        protocol=options.protocol,
        resampling=resampling_of(options),
        window=None if options.likelihood_window is None else tuple(options.likelihood_window),
        cache_dir=options.cache_dir,
        skip_bad_files=options.skip_bad_files,
        lines=tuple(options.lines),
        windows=windows,
    )


def report(evaluation: Evaluation, options: argparse.Namespace, command: str) -> None:
    """Write the JSON report and, if requested, the HTML report; then print the table."""
    write_json_report(options.json, json_report(evaluation, command))
    written = [options.json]
    if options.html is not None:
        write_page(options.html, evaluation, command)
        written.append(options.html)
    say(text_table(evaluation, symbols=supports("".join(WORDS))))
    say(f"\n-> {', '.join(map(printable, written))}")


def _fields(texts: Sequence[str] | None, flag: str) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    for text in texts or []:
        name, separator, values = text.partition("=")
        if not separator or not name or not values:
            expected = "FIELD=VALUE or FIELD=VALUE,VALUE, such as speaker=jackson,theo"
            raise UserError(f"{flag} {printable(text)}: expected {expected}")
        fields[name] = values.split(",")
    return fields


def _check_numbers(options: argparse.Namespace) -> None:
    resampling_of(options)
    wrong = next((line for line in options.lines if not (math.isfinite(line) and line > 0)), None)
    if wrong is not None:
        raise UserError(f"--lines has {wrong:g}, expected frequencies in Hz above 0")


def _check_outputs(options: argparse.Namespace, chosen: str | None, folders: Sequence[ClipFolder]) -> None:
    """Refuse reports that would replace each other, or a file of the recordings, the classifier or the extractor."""
    read = [(*clips.files, *clips.others, *(clips.root / name for name in RECORDS)) for clips in folders]
    classifier = [] if chosen is None else entries(model_folder(chosen))
    extractor = [] if options.features is None else sources_of(options.features)
    outputs = {"--json": options.json, "--html": options.html}
    check_output_files(outputs, itertools.chain(*read, classifier, extractor), new_folders=True)


if __name__ == "__main__":
    sys.exit(main())
