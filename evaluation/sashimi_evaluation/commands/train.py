"""``sashimi-train``: train a model on recordings, or a classifier for the evaluation of generated audio."""

import sys
from collections.abc import Sequence
from pathlib import Path

from sashimi_diffusion.commands.train import COMMANDS as MODELS
from sashimi_diffusion.commands.train import run_sub_command, training
from sashimi_diffusion.training.command import Recipe
from sashimi_evaluation.classifiers.training.config import ClassifierConfig
from sashimi_evaluation.classifiers.training.task import ClassifierTask

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
"""The folder of the configs of classifiers. It has a folder for the JSON schema."""

CLASSIFIER = Recipe(ClassifierTask, ClassifierConfig, CONFIGS, "digits-small")

COMMANDS = MODELS | {
    "classifier": training(
        CLASSIFIER,
        "train a classifier of spoken words, for the metrics of generated audio",
        """examples:
  sashimi-train classifier data.sources.fsdd.path=RECORDINGS data.sources.speech_commands.path=SPEECH_COMMANDS
  sashimi-train classifier --list                                   the packaged configs
  sashimi-train classifier --config words-small data.sources.speech_commands.path=SPEECH_COMMANDS
  sashimi-train classifier --config resnext-sc09 data.sources.speech_commands.path=SPEECH_COMMANDS
  sashimi-train classifier --resume output_dir=runs/digits-small-classifier

load_classifier and sashimi-evaluate load the folder `pipeline` of the run.
""",
    ),
}
"""The sub-commands by name."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    return run_sub_command(COMMANDS, arguments)


if __name__ == "__main__":
    sys.exit(main())
