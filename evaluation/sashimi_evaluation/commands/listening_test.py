"""``sashimi-evaluate listening-test``: create a page on which people rate clips, and score their answers."""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from sashimi_diffusion.command_line import Parser, path_argument
from sashimi_diffusion.terminal import printable, say
from sashimi_evaluation.clips import open_sets
from sashimi_evaluation.listening_test import (
    ListeningResult,
    Score,
    score_listening_test,
    usable_files,
    write_listening_test,
)
from sashimi_evaluation.report.record import aligned

EXAMPLES = """examples:
  sashimi-evaluate listening-test make ours=samples real=recordings --pattern "{label}_{speaker}_{index}" --out test
  sashimi-evaluate listening-test score test.key.json answers/*.csv
"""


def build_parser() -> Parser:
    """Return the parser of the command's arguments."""
    parser = Parser(
        prog="sashimi-evaluate listening-test",
        description="Blind listening test: people rate clips of several methods in a browser.",
        epilog=EXAMPLES,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="make|score", parser_class=Parser)
    make = actions.add_parser(
        "make", help="write the page, its clips and the key", description="Write the page, its clips and the key."
    )
    make.add_argument("samples", nargs="+", metavar="[NAME=]DIR", help="folders of clips, one for each method")
    make.add_argument("--out", type=path_argument, required=True, metavar="DIR", help="new folder for the raters")
    make.add_argument("--clips", type=int, default=20, metavar="N", help="number of clips of each method")
    make.add_argument(
        "--pattern",
        metavar="P",
        help='file names from which to read the digits, e.g. "{label}_{speaker}_{index}", for folders without '
        "samples.json that are not one folder per digit; without the digits there is no accuracy of transcriptions",
    )
    make.add_argument("--skip-bad-files", action="store_true", help="warn about unusable files and leave them out")
    make.add_argument("--seed", type=int, default=0, help="seed of the selection and the order of the clips")
    score = actions.add_parser(
        "score",
        help="compute mean opinion scores from the raters' files (needs scikit-learn)",
        description="Compute mean opinion scores from the raters' files.",
    )
    score.add_argument("key", type=path_argument, help="the .key.json file next to the folder of the test")
    score.add_argument("answers", type=path_argument, nargs="+", metavar="CSV", help="files that the raters saved")
    return parser


def listening_test(arguments: Sequence[str]) -> None:
    """Run the command.

    Raises:
        UserError: a folder, a file or an option cannot be used.
    """
    options = build_parser().parse_args(arguments)
    if options.action == "make":
        _make(options)
    else:
        say(format_result(score_listening_test(options.key, options.answers)))


def format_result(result: ListeningResult) -> str:
    """Return a table of the mean scores with intervals and numbers of answers, and the agreement of the raters."""
    ratings = list(dict.fromkeys(rating for scores in result.scores.values() for rating in scores))
    rows = [["", *ratings]]
    rows += [
        [printable(name), *(_cell(scores.get(rating)) for rating in ratings)] for name, scores in result.scores.items()
    ]
    kappas = ", ".join(
        f"{rating} {kappa:.2f}" if math.isfinite(kappa) else f"{rating} -" for rating, kappa in result.agreement.items()
    )
    title = f"test {printable(result.test)}, {result.raters} raters"
    return "\n".join([title, *aligned(rows), f"agreement (kappa): {kappas}"])


def _cell(score: Score | None) -> str:
    if score is None:
        return "-"
    interval = "" if score.low is None else f" [{score.low:.2f}, {score.high:.2f}]"
    return f"{score.mean:.2f}{interval} n={score.answers}"


def _make(options: argparse.Namespace) -> None:
    files: dict[str, Sequence[Path]] = {}
    labels: dict[Path, int] = {}
    for clips in open_sets(options.samples, options.pattern, options.skip_bad_files):
        files[clips.name] = usable_files(clips) if options.skip_bad_files else clips.files
        labels |= {file: int(label) for file, label in zip(clips.files, clips.labels, strict=True) if label >= 0}
        for note in clips.notes:
            say(f"note: {printable(clips.name)}: {note}", sys.stderr)
    key = write_listening_test(options.out, files, options.seed, options.clips, labels=labels)
    folder = printable(options.out)
    say(f"give the folder {folder} to the raters; keep {printable(key)}, which identifies the clips")
