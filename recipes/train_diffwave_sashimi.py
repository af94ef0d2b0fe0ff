"""Train a diffusion model on raw audio.

    accelerate launch recipes/train_diffwave_sashimi.py data.path=RECORDINGS
    accelerate launch recipes/train_diffwave_sashimi.py --config recipes/configs/sc09-sashimi-d64.yaml data.path=FOLDER
    accelerate launch recipes/train_diffwave_sashimi.py --resume output_dir=runs/digits-small training.steps=20000

The default config is recipes/configs/digits-small.yaml: a small model of spoken digits for a computer without a GPU.
Start several processes with `accelerate launch --multi_gpu --num_processes N` on GPUs, or with
`torchrun --nproc-per-node N` on a CPU.
"""

import sys
from pathlib import Path

from sashimi_diffusion.training.command import run_recipe
from sashimi_diffusion.training.diffusion.config import DiffusionConfig
from sashimi_diffusion.training.diffusion.task import DiffusionTask

DEFAULT = Path(__file__).parent / "configs" / "digits-small.yaml"


def main() -> int:
    """Run the command line and return its exit code."""
    return run_recipe(DiffusionTask, DiffusionConfig, DEFAULT, __doc__)


if __name__ == "__main__":
    sys.exit(main())
