"""Train a diffusion model on raw audio: `sashimi-train diffusion` as a script.

    accelerate launch recipes/train_diffwave_sashimi.py data.path=RECORDINGS
    accelerate launch recipes/train_diffwave_sashimi.py --config sc09-sashimi-d64 data.path=FOLDER
    accelerate launch recipes/train_diffwave_sashimi.py --resume output_dir=runs/digits-small training.steps=20000

The default config is digits-small: a small model of spoken digits for a computer without a GPU. `--list` prints the
other configs. Start several processes with `accelerate launch --multi_gpu --num_processes N` on GPUs, or with
`torchrun --nproc-per-node N` on a CPU.
"""

import sys

from sashimi_diffusion.commands.train import DIFFUSION
from sashimi_diffusion.training.command import run_recipe


def main() -> int:
    """Run the command line and return its exit code."""
    return run_recipe(DIFFUSION, __doc__)


if __name__ == "__main__":
    sys.exit(main())
