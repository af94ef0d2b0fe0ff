"""``sashimi-push``: push a pipeline or the result of a run to the Hugging Face hub."""

import sys
from collections.abc import Sequence
from pathlib import Path

from sashimi_diffusion.command_line import Parser, path_argument, run
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.paths import is_folder, kind, status
from sashimi_diffusion.pipelines.hub import CARD, check_push, push_to_hub
from sashimi_diffusion.terminal import printable, say

EXAMPLES = """examples:
  sashimi-push runs/drums me/drums              the pipeline of a finished run
  sashimi-push my-pipeline me/drums --private   any folder of a pipeline
"""
_INDICES = ("model_index.json", "config.json")


def build_parser() -> Parser:
    """Return the argument parser of the command."""
    parser = Parser(
        prog="sashimi-push",
        description="Upload a pipeline, or the classifier of a run, to the Hugging Face hub.",
        epilog=EXAMPLES,
    )
    add = parser.add_argument
    add("folder", type=path_argument, help="folder of a pipeline or of a classifier, or a run folder")
    add("name", metavar="[OWNER/]NAME", help="repository on the hub; it is created if it does not exist")
    add("--private", action="store_true", help="create a private repository")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""

    def command() -> None:
        options = build_parser().parse_args(arguments)
        folder = _model_folder(options.folder)
        repository = check_push(options.name)
        if status(folder / CARD) is None:
            say(f"warning: {printable(folder)} has no {CARD}, the model card: write one", sys.stderr)
        say(f"pushed {printable(folder)} to {push_to_hub(folder, repository, options.private)}")

    return run(command)


def _model_folder(folder: Path) -> Path:
    """Return the folder of the model in a run folder, or ``folder`` itself.

    Raises:
        UserError: there is no model.
    """
    for candidate in (folder, folder / "pipeline"):
        if any(status(candidate / name) is not None for name in _INDICES):
            return candidate
    if not is_folder(folder):
        found = status(folder)
        problem = "does not exist" if found is None else f"is {kind(found)}"
        raise UserError(f"{printable(folder)} {problem}: expected the folder of a pipeline or of a run")
    raise UserError(
        f"{printable(folder)} has no model: expected model_index.json, config.json, or a run folder with a pipeline"
    )


if __name__ == "__main__":
    sys.exit(main())
