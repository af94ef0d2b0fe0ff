"""Train an autoregressive model on raw audio.

    accelerate launch recipes/train_autoregressive_sashimi.py data.path=RECORDINGS
    accelerate launch recipes/train_autoregressive_sashimi.py --resume output_dir=runs/digits-ar-small

The default config is recipes/configs/autoregressive/digits-ar-small.yaml: a small model of spoken digits for a computer
without a GPU. Start several processes with `accelerate launch --multi_gpu --num_processes N` on GPUs, or with
`torchrun --nproc-per-node N` on a CPU.
"""

import sys
from pathlib import Path

from sashimi_diffusion.training.autoregressive.config import AutoregressiveConfig
from sashimi_diffusion.training.autoregressive.task import AutoregressiveTask
from sashimi_diffusion.training.command import run_recipe

DEFAULT = Path(__file__).parent / "configs" / "autoregressive" / "digits-ar-small.yaml"


def main() -> int:
    """Run the command line and return its exit code."""
    return run_recipe(AutoregressiveTask, AutoregressiveConfig, DEFAULT, __doc__)


if __name__ == "__main__":
    sys.exit(main())
