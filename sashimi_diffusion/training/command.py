"""The command line of a training recipe."""

import os
import sys
from pathlib import Path

from sashimi_diffusion.command_line import Parser
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.launch import require_all_processes
from sashimi_diffusion.terminal import say
from sashimi_diffusion.training.accelerator import is_lost_connection
from sashimi_diffusion.training.config import RunConfig, write_schema
from sashimi_diffusion.training.health import RunEnded
from sashimi_diffusion.training.loop import train
from sashimi_diffusion.training.progress import close_bars
from sashimi_diffusion.training.run_folder import config_of_command, how_to_continue
from sashimi_diffusion.training.task import Task
from sashimi_kernels.allocation import keep_freed_memory


def run_recipe(task_class: type[Task], kind: type[RunConfig], default_file: Path, description: str) -> int:
    """Run the command line and return its exit code.

    It is 0, 1 if the run ended badly, 2 after another UserError, or 130 after an interruption.

    Args:
        task_class: the kind of run.
        kind: the class of its config.
        default_file: the config file that is used without ``--config``.
        description: text of ``--help``.
    """
    parser = Parser(description=description)
    parser.add_argument("--config", metavar="FILE", help=f"YAML file (default: {default_file.name})")
    parser.add_argument(
        "--resume", action="store_true", help="continue the run in output_dir from its newest checkpoint"
    )
    parser.add_argument(
        "--resume-from", metavar="CHECKPOINT", help="continue from this checkpoint, e.g. checkpoints/step-001000"
    )
    parser.add_argument("--skip-bad-files", action="store_true", help="ignore recordings that cannot be used")
    parser.add_argument("--schema", action="store_true", help="print the JSON schema of the YAML file and exit")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings that replace those of the file")
    config = None
    try:
        arguments = parser.parse_intermixed_args()
        if arguments.schema:
            say(write_schema(kind).rstrip("\n"))
            return 0
        keep_freed_memory()
        resume = arguments.resume or arguments.resume_from is not None
        require_all_processes()
        if arguments.config == "":
            raise UserError("--config is empty: it must name a YAML file")
        config = config_of_command(kind, arguments.config, default_file, arguments.overrides, resume)
        train(task_class, config, resume, arguments.resume_from, arguments.skip_bad_files)
    except UserError as error:
        _complain(f"error: {' '.join(str(error).split())}")
        return 1 if isinstance(error, RunEnded) else 2
    except KeyboardInterrupt:
        _complain("stopped" + ("" if config is None else f"; {how_to_continue(Path(config.output_dir))}"))
        return 130
    except RuntimeError as error:
        if config is None or not is_lost_connection(error):
            raise
        close_bars()
        text = "another process of this run has ended; if it printed no error, it was killed"
        say(f"error: {text}; {how_to_continue(Path(config.output_dir))}", sys.stderr)
        return 1
    return 0


def _complain(line: str) -> None:
    """Print a line on stderr, only once for all processes of this computer."""
    close_bars()
    if os.environ.get("LOCAL_RANK", "0") == "0":
        say(line, sys.stderr)
