"""Test and measure this project on a GPU, in at most eight minutes, and write the results as Markdown and JSON.

    python -m sashimi_diffusion.benchmarks.gpu_check
    python -m sashimi_diffusion.benchmarks.gpu_check --only card forward-triton training-triton --minutes 4
    python -m sashimi_diffusion.benchmarks.gpu_check --peer diffwave-sashimi
    python -m sashimi_diffusion.benchmarks.gpu_check --dry-run

Every part runs in a process of its own with a time limit, so a crash or a hang leaves the other parts. The report is
written again after every row. docs/gpu.md describes it.
"""

import argparse
import datetime
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from sashimi_diffusion.benchmarks.gpu_check.parts import PARTS, Outcome, Part, run_parts
from sashimi_diffusion.benchmarks.gpu_check.report import number, write_report
from sashimi_diffusion.benchmarks.gpu_check.rows import Row, Setting
from sashimi_diffusion.command_line import Parser, path_argument, run
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.files import writing
from sashimi_diffusion.paths import is_folder
from sashimi_diffusion.terminal import printable, say
from sashimi_kernels.measuring import source_commit

_LONGEST = 1440  # minutes


def main() -> int:
    """Run the check and return its exit code: 0, 1 if a part failed or was stopped, 2 without a device."""
    return run(_check)


def _check() -> int:
    arguments = _arguments()
    if arguments.list:
        for part in PARTS:
            needs = " (needs --peer)" if part.needs_peer else " (needs CUDA)" if part.needs_cuda else ""
            say(f"{part.name:<16} {part.title}{needs}")
        return 0
    card = "cpu" if arguments.dry_run else _card()
    out = arguments.out or Path(f"gpu-check-{re.sub(r'[^a-z0-9]+', '-', card.lower()).strip('-')}")
    with writing(f"to {printable(out)}", "choose another --out"):
        out.mkdir(parents=True, exist_ok=True)
    setting = Setting("cpu" if arguments.dry_run else "cuda", arguments.dry_run, str(out.resolve()), arguments.peer)
    heading = {
        "card": card + (" (dry run with tiny sizes: its times mean nothing)" if arguments.dry_run else ""),
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "commit": arguments.commit or source_commit(),
        "command": " ".join(["python -m sashimi_diffusion.benchmarks.gpu_check", *sys.argv[1:]]),
    }
    return check(_parts(arguments), setting, heading, 60 * arguments.minutes)


def check(parts: Sequence[Part], setting: Setting, heading: dict[str, str], seconds: float) -> int:
    """Run parts, print their rows, write the report after every row, and return 1 if a part failed or was stopped."""
    out = Path(setting.out)
    outcomes: list[Outcome] = []
    printed: dict[tuple[str, str, str], Row] = {}
    write_report(out, heading, outcomes)
    for outcomes in run_parts(parts, setting, seconds):
        write_report(out, heading, outcomes)
        _print(outcomes[-1], printed)
    say(f"wrote {out / 'report.md'} and {out / 'report.json'}")
    return int(any(outcome.status in ("failed", "stopped") for outcome in outcomes))


def _print(outcome: Outcome, printed: dict[tuple[str, str, str], Row]) -> None:
    """Print new rows, and at the end of a part also those that were replaced, and how it ended."""
    for row in outcome.rows:
        key = (outcome.part, row.name, row.variant)
        if key not in printed or (outcome.status != "running" and printed[key] != row):
            printed[key] = row
            value = number(row.value, row.unit) if row.problem is None else row.problem
            say(f"  {', '.join(filter(None, (row.name, row.variant)))}: {value}")
    if outcome.status != "running":
        explanation = f": {outcome.explanation}" if outcome.explanation else ""
        say(f"{outcome.part}: {outcome.status} after {outcome.seconds:.0f} s{explanation}")


def _arguments() -> argparse.Namespace:
    names = ", ".join(part.name for part in PARTS)
    parser = Parser(prog="python -m sashimi_diffusion.benchmarks.gpu_check", description=__doc__)
    add = parser.add_argument
    add(
        "--out", type=path_argument, metavar="FOLDER", help="folder of the report (default: gpu-check-NAME-OF-THE-CARD)"
    )
    add("--minutes", type=float, default=8.0, help="time for all parts")
    add("--only", nargs="+", metavar="PART", help=f"parts to run (default: all): {names}")
    add(
        "--peer", type=path_argument, metavar="FOLDER", help="checkout of the official code, to time it in the same run"
    )
    add("--commit", help="commit for the report, for a copy of the files without its git folder")
    add("--list", action="store_true", help="list the parts and exit")
    add("--dry-run", action="store_true", help="try the command on a CPU with tiny sizes")
    arguments = parser.parse_args()
    if unknown := set(arguments.only or ()) - {part.name for part in PARTS}:
        raise UserError(f"unknown part {sorted(unknown)[0]!r}: expected some of {names}")
    if not 0 < arguments.minutes <= _LONGEST:
        raise UserError(f"--minutes is {arguments.minutes:g}: expected a number above 0 and up to {_LONGEST}")
    if arguments.peer is not None:
        if not is_folder(arguments.peer):
            raise UserError(f"the folder {printable(arguments.peer)} of --peer does not exist: see docs/gpu.md")
        arguments.peer = str(arguments.peer.resolve())
    return arguments


def _parts(arguments: argparse.Namespace) -> list[Part]:
    chosen = [part for part in PARTS if arguments.only is None or part.name in arguments.only]
    return chosen if arguments.peer or arguments.only else [part for part in chosen if not part.needs_peer]


def _card() -> str:
    if not torch.cuda.is_available():
        built = f"torch {torch.__version__} finds none"
        raise UserError(f"no CUDA device: {built}; --dry-run tries the command on a CPU")
    return torch.cuda.get_device_name(0)


if __name__ == "__main__":
    sys.exit(main())
