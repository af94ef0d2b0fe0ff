"""Train a classifier of spoken words, for the metrics of generated audio: `sashimi-train classifier` as a script.

    accelerate launch recipes/train_digit_classifier.py \\
        data.sources.fsdd.path=RECORDINGS data.sources.speech_commands.path=SPEECH_COMMANDS
    accelerate launch recipes/train_digit_classifier.py --config words-small \\
        data.sources.speech_commands.path=SPEECH_COMMANDS
    accelerate launch recipes/train_digit_classifier.py --config resnext-sc09 \\
        data.sources.speech_commands.path=SPEECH_COMMANDS
    accelerate launch recipes/train_digit_classifier.py --resume output_dir=runs/digits-small-classifier

The default config is digits-small, the bundled small classifier. load_classifier and sashimi-evaluate load the folder
`pipeline` of the run.
"""

import sys

from sashimi_diffusion.training.command import run_recipe
from sashimi_evaluation.commands.train import CLASSIFIER


def main() -> int:
    """Run the command line and return its exit code."""
    return run_recipe(CLASSIFIER, __doc__)


if __name__ == "__main__":
    sys.exit(main())
