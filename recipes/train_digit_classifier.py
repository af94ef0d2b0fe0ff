"""Train a classifier of spoken digits, for the metrics of generated audio.

    accelerate launch recipes/train_digit_classifier.py \\
        data.sources.fsdd.path=RECORDINGS data.sources.speech_commands.path=SPEECH_COMMANDS
    accelerate launch recipes/train_digit_classifier.py --config recipes/configs/classifiers/resnext-sc09.yaml \\
        data.sources.speech_commands.path=SPEECH_COMMANDS
    accelerate launch recipes/train_digit_classifier.py --resume output_dir=runs/digits-small-classifier

The default config is recipes/configs/classifiers/digits-small.yaml, the bundled small classifier. load_classifier and
sashimi-evaluate load the folder `pipeline` of the run.
"""

import sys
from pathlib import Path

from sashimi_diffusion.training.command import run_recipe
from sashimi_evaluation.classifiers.training.config import ClassifierConfig
from sashimi_evaluation.classifiers.training.task import ClassifierTask

DEFAULT = Path(__file__).parent / "configs" / "classifiers" / "digits-small.yaml"


def main() -> int:
    """Run the command line and return its exit code."""
    return run_recipe(ClassifierTask, ClassifierConfig, DEFAULT, __doc__)


if __name__ == "__main__":
    sys.exit(main())
