"""``sashimi-evaluate``: evaluate folders of clips against real recordings; write a table, a JSON and an HTML report."""

import argparse
import itertools
import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState

from sashimi_diffusion.command_line import Parser, path_argument, run, select_device
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.launch import prints_error, require_all_processes, require_same_count
from sashimi_diffusion.output_files import check_output_files
from sashimi_diffusion.paths import entries
from sashimi_diffusion.terminal import listed, printable, say, supports
from sashimi_evaluation.classifiers import WordClassifier, load_classifier
from sashimi_evaluation.classifiers.loading import bundled_classifiers, model_folder
from sashimi_evaluation.clips import RECORDS, ClipFolder, class_index, open_clips, open_sets, split_held_out
from sashimi_evaluation.commands.likelihood import likelihood
from sashimi_evaluation.commands.listening_test import listening_test
from sashimi_evaluation.commands.vocoder import vocoder
from sashimi_evaluation.evaluation import PROTOCOLS, Evaluation, Settings, evaluate, extract_features
from sashimi_evaluation.extractors import load_extractor, source_of
from sashimi_evaluation.metrics.intervals import Resampling
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
  accelerate launch -m sashimi_evaluation.commands.evaluate samples --reference recordings
  sashimi-evaluate listening-test --help
  sashimi-evaluate vocoder --help
  sashimi-evaluate likelihood --help
"""

PATTERN_HELP = 'file names of the recordings, e.g. "{label}_{speaker}_{index}" (default: one folder per class)'
DEFAULT_CLASSIFIER = "digits-small"
PREPARE_HELP = (
    "prepare the held-out recordings like the training data of the generated clips: rate=HZ,length=SAMPLES,rms=LEVEL, "
    "or none (default: what samples.json and the card of the pipeline say)"
)
LINES_HELP = "frequencies in Hz at which lines in the spectrum are looked for (default: 1000 2000 3000)"
_MOST_RESAMPLES = 10_000
WINDOW_HELP = "discard these fractions of the least likely and the most likely clips; the SaShiMi paper uses 0.4 0.05"


def build_parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        prog="sashimi-evaluate",
        description="Evaluate clips of spoken words from any system against real recordings.",
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
        f"{DEFAULT_CLASSIFIER}, words-small; {DEFAULT_CLASSIFIER} if none does)",
    )
    add("--features", metavar="MODULE:FUNCTION", help="feature extractor (default: the features of the classifier)")
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
            likelihood(arguments[1:])
            return
        if arguments[:1] == ["vocoder"]:
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
    device = select_device(options.device)
    state = PartialState(cpu=device.type == "cpu")
    require_same_count(state.num_processes)
    if state.num_processes > 1:
        device = state.device
    sets = open_sets(options.samples, options.sample_pattern, options.skip_bad_files)
    reference, held_out = open_reference(options)
    held_out = prepared(held_out, sets, options.prepare)
    extractor = None if options.features is None else load_extractor(options.features)
    read = [*sets, reference, *([] if held_out is None else [held_out])]
    if options.classifier is None:
        classifier = fitting_classifier(sets, device)
        _check_outputs(options, classifier.name, read)
    else:
        _check_outputs(options, options.classifier, read)
        classifier = load_classifier(options.classifier, device)
        check_classes(sets, classifier)
    extraction = extract_features(sets, reference, held_out, classifier, extractor, settings_of(options))
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


def fitting_classifier(sets: Sequence[ClipFolder], device: torch.device) -> WordClassifier:
    """Return the first bundled classifier that knows the classes of all sets, or of the most."""

    def fit(classifier: WordClassifier) -> tuple[int, bool]:
        known = sum(clips.labeled_by(classifier.class_names).labeled for clips in sets)
        return known, classifier.name == DEFAULT_CLASSIFIER

    return max(bundled_classifiers(device), key=fit)


def check_classes(sets: Sequence[ClipFolder], classifier: WordClassifier) -> None:
    """Check that a classifier knows the classes that the records or the names of the files give to all clips.

    Raises:
        UserError: it does not know a class.
    """
    for clips in sets:
        classes = {words[0] for words in clips.words if words}
        unknown = sorted(name for name in classes if class_index(name, classifier.class_names) < 0)
        if clips.named and unknown:
            raise UserError(
                f"the clips of {printable(clips.name)} have the classes {listed(unknown, 5)}, which the classifier "
                f"{printable(classifier.name)} does not know (its classes are {listed(classifier.class_names, 12)}): "
                "choose another --classifier, or leave it out"
            )


def prepared(held_out: ClipFolder | None, sets: Sequence[ClipFolder], option: str | None) -> ClipFolder | None:
    """Return the held-out recordings with the preparation that ``--prepare`` or the records of the sets name.

    Raises:
        UserError: the option is invalid, or there are no held-out recordings to prepare.
    """
    if held_out is None:
        if option is not None:
            raise UserError("--prepare is for held-out recordings: give --hold-out or --held-out, too")
        return None
    recorded = {clips.name: clips.recorded for clips in sets if clips.recorded != Preparation()}
    preparation, note = chosen_preparation(option, recorded)
    return replace(held_out, preparation=preparation, record_notes=(*held_out.record_notes, *([note] if note else [])))


def settings_of(options: argparse.Namespace) -> Settings:
    """Return the settings of the evaluation."""
    return Settings(
        protocol=options.protocol,
        resampling=Resampling(options.resamples, options.seed),
        window=None if options.likelihood_window is None else tuple(options.likelihood_window),
        cache_dir=options.cache_dir,
        skip_bad_files=options.skip_bad_files,
        lines=tuple(options.lines),
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
    if not 2 <= options.resamples <= _MOST_RESAMPLES:
        raise UserError(f"--resamples is {options.resamples}, expected at least 2 and at most {_MOST_RESAMPLES}")
    wrong = next((line for line in options.lines if not (math.isfinite(line) and line > 0)), None)
    if wrong is not None:
        raise UserError(f"--lines has {wrong:g}, expected frequencies in Hz above 0")
    if not 0 <= options.seed < 2**32:
        raise UserError(f"--seed is {options.seed}, expected a whole number from 0 to {2**32 - 1}")


def _check_outputs(options: argparse.Namespace, classifier_name: str, folders: Sequence[ClipFolder]) -> None:
    """Refuse reports that would replace each other, a recording or another file of the evaluation."""
    read = [(*clips.files, *clips.others, *(clips.root / name for name in RECORDS)) for clips in folders]
    classifier = entries(model_folder(classifier_name))
    extractor = None if options.features is None else source_of(options.features)
    outputs = {"--json": options.json, "--html": options.html}
    check_output_files(outputs, itertools.chain(*read, classifier, [extractor] if extractor else []), new_folders=True)


if __name__ == "__main__":
    sys.exit(main())
