"""Distill a trained diffusion model to a few sampling steps: `sashimi-train distill` as a script.

    accelerate launch recipes/distill_sashimi.py data.path=RECORDINGS
    accelerate launch recipes/distill_sashimi.py --config runs/mine/config.yaml \\
        training.initial_pipeline=runs/mine/pipeline output_dir=runs/mine-turbo optimizer.lr=1e-3
    accelerate launch recipes/distill_sashimi.py --resume output_dir=runs/digits-turbo

The default config is digits-turbo: the bundled pipeline of spoken digits, distilled to four steps. `--list` prints the
other configs. Start several processes with `accelerate launch --multi_gpu --num_processes N` on GPUs, or with
`torchrun --nproc-per-node N` on a CPU.
"""

import sys

from sashimi_diffusion.commands.train import DISTILLATION
from sashimi_diffusion.training.command import run_recipe


def main() -> int:
    """Run the command line and return its exit code."""
    return run_recipe(DISTILLATION, __doc__)


if __name__ == "__main__":
    sys.exit(main())
