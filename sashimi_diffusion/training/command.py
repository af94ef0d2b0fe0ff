"""The command line of a training run."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sashimi_diffusion.command_line import Parser, run
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.launch import TERMINATION, is_lost_connection, prints_error, require_all_processes
from sashimi_diffusion.terminal import say
from sashimi_diffusion.training.config import RunConfig, write_schema
from sashimi_diffusion.training.health import RunEnded
from sashimi_diffusion.training.loop import train
from sashimi_diffusion.training.packaged_configs import config_file, overview
from sashimi_diffusion.training.run_folder import CONFIG, config_of_command, how_to_continue
from sashimi_diffusion.training.task import Task
from sashimi_kernels.allocation import keep_freed_memory


@dataclass(frozen=True)
class Recipe:
    """What a command line trains.

    Args:
        task: the kind of run.
        config: the class of its config.
        configs: folder of the packaged configs for this kind of run.
        default: name of the config that is used without ``--config``.
    """

    task: type[Task]
    config: type[RunConfig]
    configs: Path
    default: str


def run_recipe(recipe: Recipe, description: str, arguments: Sequence[str] | None = None) -> int:
    """Run the command line of a script that trains and return its exit code.

    It is 0, 1 if the run ended badly, 2 after another UserError, or 130 after an interruption.

    Args:
        recipe: what the script trains.
        description: text of ``--help``.
        arguments: the arguments of the command line; None: those of this process.
    """

    def command() -> int:
        parser = Parser(description=description)
        add_arguments(parser, recipe)
        return train_with_options(recipe, parser.parse_intermixed_args(arguments))

    return run(command, prints_error)


def add_arguments(parser: Parser, recipe: Recipe) -> None:
    """Add the arguments of a training run to a parser, for :func:`train_with_options`."""
    add = parser.add_argument
    add(
        "--config",
        metavar="NAME|FILE",
        help=f"a packaged config by its name, or a YAML file (default: {recipe.default}, or that of a resumed run)",
    )
    add("--list", action="store_true", help="print the packaged configs and exit")
    add("--resume", action="store_true", help="continue the run in output_dir from its newest checkpoint")
    add("--resume-from", metavar="CHECKPOINT", help="continue from this checkpoint, e.g. checkpoints/step-001000")
    add("--skip-bad-files", action="store_true", help="ignore recordings that cannot be used")
    add("--push-to-hub", metavar="[OWNER/]NAME", help="push the pipeline to the Hugging Face hub after the run")
    add("--schema", action="store_true", help="print the JSON schema of the YAML file and exit")
    add("overrides", nargs="*", metavar="key.sub=value", help="settings that replace those of the config")


def train_with_options(recipe: Recipe, options: argparse.Namespace) -> int:
    """Train, or print what the options ask for, and return the exit code.

    Raises:
        UserError: as :func:`train`, or the options do not fit together.
    """
    if options.list:
        _require_nothing_else(options)
        say(overview(recipe.configs))
        return 0
    if options.schema:
        say(write_schema(recipe.config).rstrip("\n"))
        return 0
    keep_freed_memory()
    require_all_processes()
    resume = options.resume or options.resume_from is not None
    file = None if options.config is None else config_file(options.config, recipe.configs)
    default_file = recipe.configs / f"{recipe.default}.yaml"
    config = config_of_command(recipe.config, file, default_file, options.overrides, resume)
    folder = Path(config.output_dir)
    source = file or (folder / CONFIG if resume else default_file)
    instead = " instead of --resume-from" if options.resume_from is not None else ""
    try:
        with TERMINATION.awaited():
            train(
                recipe.task,
                config,
                resume,
                options.resume_from,
                options.skip_bad_files,
                push=options.push_to_hub,
                source=source,
            )
    except RunEnded:
        if not TERMINATION.obeyed:
            raise
        raise KeyboardInterrupt(f"stopped by SIGTERM; {how_to_continue(folder, instead)}") from None
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"stopped; {how_to_continue(folder, instead)}") from None
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        # Every process that is left says so, because the process that reports errors may be the one that ended.
        text = "another process of this run has ended; if it printed no error, it was killed"
        say(f"error: {text}; {how_to_continue(folder, instead)}", sys.stderr)
        return 1
    return 0


def _require_nothing_else(options: argparse.Namespace) -> None:
    """Raise UserError if there are other arguments beside ``--list``."""
    others = [name for name, value in vars(options).items() if name != "list" and value not in (None, False, [])]
    if others:
        name = "key.sub=value" if others[0] == "overrides" else f"--{others[0].replace('_', '-')}"
        raise UserError(f"--list prints the packaged configs and trains nothing: leave out {name}, or --list")
