"""``sashimi-train``: train a model on recordings.

This module has the kinds of runs of this package. The console script is in ``sashimi_evaluation.commands.train``, which
adds classifiers.
"""

import argparse
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from sashimi_diffusion.command_line import Parser, run
from sashimi_diffusion.commands import init
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.launch import prints_error
from sashimi_diffusion.suggestions import did_you_mean
from sashimi_diffusion.training.autoregressive.config import AutoregressiveConfig
from sashimi_diffusion.training.autoregressive.task import AutoregressiveTask
from sashimi_diffusion.training.command import Recipe, add_arguments, train_with_options
from sashimi_diffusion.training.diffusion.config import DiffusionConfig
from sashimi_diffusion.training.diffusion.task import DiffusionTask
from sashimi_diffusion.training.distillation.config import DistillationConfig
from sashimi_diffusion.training.distillation.task import DistillationTask
from sashimi_diffusion.training.packaged_configs import CONFIGS

DIFFUSION = Recipe(DiffusionTask, DiffusionConfig, CONFIGS / "diffusion", "digits-small")
DISTILLATION = Recipe(DistillationTask, DistillationConfig, CONFIGS / "distillation", "digits-turbo")
AUTOREGRESSIVE = Recipe(AutoregressiveTask, AutoregressiveConfig, CONFIGS / "autoregressive", "digits-ar-small")


@dataclass(frozen=True)
class SubCommand:
    """A sub-command of ``sashimi-train``.

    Args:
        summary: a line about it for the help of the whole command.
        examples: text at the end of its own help.
        add_arguments: adds its arguments to a parser.
        run: does the work with the parsed arguments and returns the exit code.
    """

    summary: str
    examples: str
    add_arguments: Callable[[Parser], None]
    run: Callable[[argparse.Namespace], int]


def training(recipe: Recipe, summary: str, examples: str) -> SubCommand:
    """Return the sub-command that trains a recipe."""
    add = functools.partial(add_arguments, recipe=recipe)
    return SubCommand(summary, examples, add, functools.partial(train_with_options, recipe))


COMMANDS = {
    "diffusion": training(
        DIFFUSION,
        "train a diffusion model: a SaShiMi or WaveNet denoiser of waveforms, or a vocoder",
        """examples:
  sashimi-train diffusion data.path=RECORDINGS                      a small model, for a computer without a GPU
  sashimi-train diffusion --list                                    the packaged configs
  sashimi-train diffusion --config sc09-sashimi-d64 data.path=SPEECH_COMMANDS
  sashimi-train diffusion --config mine.yaml training.steps=20000 output_dir=runs/mine
  sashimi-train diffusion --resume output_dir=runs/mine
  accelerate launch -m sashimi_diffusion.commands.train diffusion data.path=RECORDINGS
""",
    ),
    "autoregressive": training(
        AUTOREGRESSIVE,
        "train an autoregressive model: SaShiMi, WaveNet or SampleRNN, sample after sample",
        """examples:
  sashimi-train autoregressive data.path=RECORDINGS                 a small model, for a computer without a GPU
  sashimi-train autoregressive --list                               the packaged configs
  sashimi-train autoregressive --config piano-small data.path=PIANO output_dir=runs/piano
  sashimi-train autoregressive --resume output_dir=runs/piano
  accelerate launch -m sashimi_diffusion.commands.train autoregressive data.path=RECORDINGS
""",
    ),
    "distill": training(
        DISTILLATION,
        "distill a trained diffusion model to a student that samples in a few steps",
        """examples:
  sashimi-train distill data.path=RECORDINGS                        the bundled pipeline, to four steps
  sashimi-train distill --config runs/mine/config.yaml training.initial_pipeline=runs/mine/pipeline \\
      output_dir=runs/mine-turbo optimizer.lr=1e-3 training.steps=4000
  sashimi-train distill --resume output_dir=runs/mine-turbo

The config of the training of the teacher is also one of its distillation: the settings of the network, the data and the
schedule must be the same. The optimizer usually needs a lower learning rate.
""",
    ),
    "init": SubCommand(
        "look at a folder of recordings and write a config that trains on them",
        """examples:
  sashimi-train init RECORDINGS                       writes RECORDINGS.yaml for an hour of training
  sashimi-train init RECORDINGS --minutes 600 --out mine.yaml
  sashimi-train init RECORDINGS --autoregressive
  sashimi-train init RECORDINGS --pattern '{label}_{speaker}_{index}'
""",
        init.add_arguments,
        init.run_init,
    ),
}
"""The sub-commands of this package by name."""

_ELSEWHERE = {
    "classifier": "classifiers are trained by `sashimi-train classifier`, which is "
    "`python -m sashimi_evaluation.commands.train classifier`"
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with the sub-commands of this package and return its exit code."""
    return run_sub_command(COMMANDS, arguments, _ELSEWHERE)


def run_sub_command(
    commands: Mapping[str, SubCommand], arguments: Sequence[str] | None, elsewhere: Mapping[str, str] | None = None
) -> int:
    """Run the sub-command that the first argument names and return the exit code.

    Args:
        commands: the sub-commands by name.
        arguments: the arguments of the command line; None: those of this process.
        elsewhere: names of sub-commands of another module, and where they are.
    """

    def command() -> int:
        given = sys.argv[1:] if arguments is None else arguments
        name = given[0] if given else ""
        if name in ("-h", "--help"):
            _overview(commands, elsewhere or {}).print_help()
            return 0
        if elsewhere is not None and name in elsewhere:
            raise UserError(elsewhere[name])
        if name not in commands:
            _overview(commands, elsewhere or {}).error(_unknown(name, commands))
        chosen = commands[name]
        parser = Parser(prog=f"sashimi-train {name}", description=_sentence(chosen.summary), epilog=chosen.examples)
        chosen.add_arguments(parser)
        return chosen.run(parser.parse_intermixed_args(given[1:]))

    return run(command, prints_error)


def _overview(commands: Mapping[str, SubCommand], elsewhere: Mapping[str, str]) -> Parser:
    width = max(map(len, commands))
    lines = "\n".join(f"  {name:<{width}}  {command.summary}" for name, command in commands.items())
    first = next(iter(commands))
    return Parser(
        prog="sashimi-train",
        usage=f"sashimi-train {{{','.join(commands)}}} [options] [key.sub=value ...]",
        description=f"Train a model on recordings.\n\nThe first argument says what to do:\n{lines}",
        epilog=f"`sashimi-train {first} --help` lists the options of a sub-command, with examples."
        + "".join(f"\n{_sentence(place)}" for place in elsewhere.values()),
    )


def _unknown(name: str, commands: Mapping[str, SubCommand]) -> str:
    """Return what is wrong with a first argument that is no sub-command."""
    expected = f"the first argument must be one of {', '.join(commands)}"
    return f"{expected}, not '{name}'{did_you_mean(name, commands)}" if name else expected


def _sentence(summary: str) -> str:
    return f"{summary[:1].upper()}{summary[1:]}."


if __name__ == "__main__":
    sys.exit(main())
