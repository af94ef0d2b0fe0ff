"""``sashimi-train init FOLDER``: look at a folder of recordings and write a config that trains on them."""

import argparse
import math
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from sashimi_diffusion.command_line import Parser, path_argument, run, select_device
from sashimi_diffusion.data.audio import EXTENSIONS
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.output_files import check_output_files, write_output_file
from sashimi_diffusion.paths import status
from sashimi_diffusion.terminal import printable, say
from sashimi_diffusion.training.config import MAX_MINUTES
from sashimi_diffusion.training.own_recordings.budget import USEFUL_STEPS
from sashimi_diffusion.training.own_recordings.plan import Plan, plan_run, plan_window
from sashimi_diffusion.training.own_recordings.report import describe
from sashimi_diffusion.training.own_recordings.settings import Request
from sashimi_diffusion.training.own_recordings.survey import look_at


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command as ``python -m sashimi_diffusion.commands.init`` does and return its exit code."""

    def command() -> int:
        parser = Parser(prog="sashimi-train init", description=__doc__)
        add_arguments(parser)
        return run_init(parser.parse_args(arguments))

    return run(command)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``sashimi-train init`` to a parser, for :func:`run_init`."""
    add = parser.add_argument
    add("folder", type=path_argument, metavar="FOLDER", help="recordings (wav, flac, ogg or mp3), also in sub-folders")
    add("--out", type=path_argument, metavar="FILE", help="the config to write (default: NAME-OF-FOLDER.yaml)")
    add("--overwrite", action="store_true", help="replace the config if it exists")
    add("--minutes", type=_minutes, default=60.0, help="duration of the training")
    add("--autoregressive", action="store_true", help="train an autoregressive model instead of a diffusion model")
    add(
        "--pattern",
        metavar="{label}_{speaker}_{index}",
        help="fields of the file names, if classes and speakers are not recognized (default: they are looked for in "
        "sub-folders and names)",
    )
    add("--device", default="auto", help="device of the training, on which steps are measured")


def run_init(options: argparse.Namespace) -> int:
    """Look at ``options.folder``, print what is in it, write the config and return the exit code.

    Raises:
        UserError: the folder has nothing to train on, the config exists or cannot be written, or the device or the
            minutes are not enough.
    """
    folder = options.folder.absolute().resolve().name or "recordings"
    name = "".join(character if character.isprintable() else "_" for character in folder)
    out = options.out or Path(f"{name}.yaml")
    _check(options.folder, out, options.overwrite)
    request = Request(name, options.minutes, options.autoregressive, select_device(options.device))
    survey = look_at(options.folder, options.pattern)
    # A link may have another ending than the recording to which it leads.
    check_output_files({"--out": out}, [*(recording.path for recording in survey.recordings), *survey.bad])
    window = plan_window(request, survey)
    say(describe(survey, window))
    say(f"measuring training steps on {request.device}, which takes up to some minutes ...")
    plan = plan_run(request, survey, window)
    kind = "autoregressive" if request.autoregressive else "diffusion"
    skip = " --skip-bad-files" if survey.bad else ""
    command = f"sashimi-train {kind} --config {_as_option(out)}{skip}"
    write_output_file(out, plan.text(command).encode())
    say(_about_run(plan))
    say(f"wrote {printable(out)}; train with\n  {command}")
    return 0


def _as_option(out: Path) -> str:
    """Return the path of a config as ``--config`` reads it: a text without an ending or a folder would be a name."""
    is_path = out.suffix in (".yaml", ".yml") or out.name != str(out)
    text = str(out if is_path else f"./{out}")
    if text.isprintable():
        return shlex.quote(text)
    return f"$'{''.join(map(_as_in_a_shell, text))}'"  # the quotes of shells with escape sequences


def _as_in_a_shell(character: str) -> str:
    if character.isprintable() and character not in "'\\":
        return character
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if minutes > MAX_MINUTES:
        raise argparse.ArgumentTypeError(f"expected at most {MAX_MINUTES:,} minutes, got {text}")
    if not minutes > 0:
        raise argparse.ArgumentTypeError(f"expected a number of minutes above 0, got {text}")
    return minutes


def _check(folder: Path, out: Path, overwrite: bool) -> None:
    try:
        str(folder.absolute()).encode()
    except UnicodeEncodeError:
        raise UserError(
            f"the path {printable(folder)} is not UTF-8 text, which a config cannot have: rename the folder"
        ) from None
    if out.name.lower().endswith(EXTENSIONS):
        raise UserError(f"--out {printable(out)} has the ending of a recording: expected that of a config, .yaml")
    check_output_files({"--out": out})
    if not overwrite and status(out) is not None:
        raise UserError(f"{printable(out)} exists: replace it with --overwrite, or choose another file with --out")


def _about_run(plan: Plan) -> str:
    """Return lines about the run that the config describes."""
    budget, window, request = plan.budget, plan.window, plan.request
    seconds = budget.cost.seconds_of(budget.batch_size)
    channels = "one channel" if window.channels == 1 else f"{window.channels} channels"
    few = f" (good results need {USEFUL_STEPS:,} or more)" if budget.steps < USEFUL_STEPS else ""
    return (
        f"  examples     {window.length:,} samples ({window.seconds:.2f} s) at {window.sample_rate} Hz, {channels}\n"
        f"  network      {budget.cost.parameters:,} parameters\n"
        f"  steps        about {budget.steps:,} in {request.minutes:g} minutes on {request.device}{few}: batches of "
        f"{budget.batch_size}, {seconds:.2g} s and {budget.memory} each, as measured"
    )


if __name__ == "__main__":
    sys.exit(main())
