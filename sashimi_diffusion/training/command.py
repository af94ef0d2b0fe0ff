"""The command line of a training recipe."""

import argparse
import os
import sys
from pathlib import Path

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.training.config import RunConfig
from sashimi_diffusion.training.loop import train
from sashimi_diffusion.training.processes import all_processes
from sashimi_diffusion.training.run_folder import config_of_command
from sashimi_diffusion.training.task import Task
from sashimi_kernels.allocation import keep_freed_memory


def run_recipe(task_class: type[Task], kind: type[RunConfig], default_file: Path, description: str) -> int:
    """Run the command line; returns the exit code: 0, 2 for what the user can put right, 130 for an interruption.

    Args:
        task_class: what is trained.
        kind: of config.
        default_file: the config without ``--config``.
        description: of the recipe, for ``--help``.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", metavar="FILE", help=f"YAML file (default: {default_file.name})")
    parser.add_argument(
        "--resume", action="store_true", help="continue the run in output_dir from its newest checkpoint"
    )
    parser.add_argument(
        "--resume-from", metavar="CHECKPOINT", help="continue from this one, e.g. checkpoints/step-001000"
    )
    parser.add_argument("--skip-bad-files", action="store_true", help="go on without recordings that cannot be used")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings that replace the file's")
    arguments = parser.parse_intermixed_args()
    keep_freed_memory()
    resume = arguments.resume or arguments.resume_from is not None
    try:
        config = config_of_command(kind, arguments.config, default_file, arguments.overrides, resume)
        with all_processes():
            train(task_class, config, resume, arguments.resume_from, arguments.skip_bad_files)
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; --resume continues from the newest checkpoint", file=sys.stderr)
        return 130
    return 0
