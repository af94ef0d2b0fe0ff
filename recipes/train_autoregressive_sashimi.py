"""Train an autoregressive model on raw audio: `sashimi-train autoregressive` as a script.

    accelerate launch recipes/train_autoregressive_sashimi.py data.path=RECORDINGS
    accelerate launch recipes/train_autoregressive_sashimi.py --config piano-small data.path=PIANO
    accelerate launch recipes/train_autoregressive_sashimi.py --resume output_dir=runs/digits-ar-small

The default config is digits-ar-small: a small model of spoken digits for a computer without a GPU. `--list` prints the
other configs. Start several processes with `accelerate launch --multi_gpu --num_processes N` on GPUs, or with
`torchrun --nproc-per-node N` on a CPU.
"""

import sys

from sashimi_diffusion.commands.train import AUTOREGRESSIVE
from sashimi_diffusion.training.command import run_recipe


def main() -> int:
    """Run the command line and return its exit code."""
    return run_recipe(AUTOREGRESSIVE, __doc__)


if __name__ == "__main__":
    sys.exit(main())
