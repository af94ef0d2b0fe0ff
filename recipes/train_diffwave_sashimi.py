"""Train a diffusion model on raw audio.

    accelerate launch recipes/train_diffwave_sashimi.py data.path=RECORDINGS
    accelerate launch recipes/train_diffwave_sashimi.py --config recipes/configs/sc09-sashimi-d64.yaml data.path=FOLDER
    accelerate launch recipes/train_diffwave_sashimi.py --resume output_dir=runs/digits-small training.steps=20000

Without --config it is recipes/configs/digits-small.yaml: a small model of spoken digits for a computer without a GPU.
"""

import argparse
import os
import sys
from pathlib import Path

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.training.diffusion_config import DiffusionConfig
from sashimi_diffusion.training.diffusion_task import DiffusionTask
from sashimi_diffusion.training.loop import train
from sashimi_diffusion.training.processes import all_processes
from sashimi_diffusion.training.run_folder import config_of_command

CONFIGS = Path(__file__).parent / "configs"


def main() -> int:
    """Run the command line; returns the exit code: 0, 2 for what the user can put right, 130 for an interruption."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", metavar="FILE", help="YAML file (default: recipes/configs/digits-small.yaml)")
    parser.add_argument(
        "--resume", action="store_true", help="continue the run in output_dir from its newest checkpoint"
    )
    parser.add_argument(
        "--resume-from", metavar="CHECKPOINT", help="continue from this one, e.g. checkpoints/step-001000"
    )
    parser.add_argument("--skip-bad-files", action="store_true", help="go on without recordings that cannot be used")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="settings that replace the file's")
    arguments = parser.parse_intermixed_args()
    resume = arguments.resume or arguments.resume_from is not None
    try:
        config = config_of_command(
            DiffusionConfig, arguments.config, CONFIGS / "digits-small.yaml", arguments.overrides, resume
        )
        with all_processes():
            train(DiffusionTask, config, resume, arguments.resume_from, arguments.skip_bad_files)
    except UserError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; --resume continues from the newest checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
