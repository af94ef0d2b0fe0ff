"""The command line of a training recipe."""

import sys
from pathlib import Path

from sashimi_diffusion.command_line import Parser, path_argument, run
from sashimi_diffusion.launch import is_lost_connection, prints_error, require_all_processes
from sashimi_diffusion.terminal import say
from sashimi_diffusion.training.config import RunConfig, write_schema
from sashimi_diffusion.training.loop import train
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

    def command() -> int:
        options = build_parser(default_file, description).parse_intermixed_args()
        if options.schema:
            say(write_schema(kind).rstrip("\n"))
            return 0
        keep_freed_memory()
        require_all_processes()
        resume = options.resume or options.resume_from is not None
        config = config_of_command(kind, options.config, default_file, options.overrides, resume)
        try:
            train(task_class, config, resume, options.resume_from, options.skip_bad_files, options.push_to_hub)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped; {how_to_continue(Path(config.output_dir))}") from None
        except RuntimeError as error:
            if not is_lost_connection(error):
                raise
            # Every process that is left says so, because the process that reports errors may be the one that ended.
            text = "another process of this run has ended; if it printed no error, it was killed"
            say(f"error: {text}; {how_to_continue(Path(config.output_dir))}", sys.stderr)
            return 1
        return 0

    return run(command, prints_error)


def build_parser(default_file: Path, description: str) -> Parser:
    """Return the argument parser; the arguments are those of :func:`run_recipe`."""
    parser = Parser(description=description)
    add = parser.add_argument
    add("--config", type=path_argument, metavar="FILE", help=f"YAML file (default: {default_file.name})")
    add("--resume", action="store_true", help="continue the run in output_dir from its newest checkpoint")
    add("--resume-from", metavar="CHECKPOINT", help="continue from this checkpoint, e.g. checkpoints/step-001000")
    add("--skip-bad-files", action="store_true", help="ignore recordings that cannot be used")
    add("--push-to-hub", metavar="[OWNER/]NAME", help="push the pipeline to the Hugging Face hub after the run")
    add("--schema", action="store_true", help="print the JSON schema of the YAML file and exit")
    add("overrides", nargs="*", metavar="key.sub=value", help="settings that replace those of the file")
    return parser
