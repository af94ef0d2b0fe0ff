"""Check that every requested process has been started."""

import os
import sys

from sashimi_diffusion.errors import UserError

# Variables in which torchrun and common MPI implementations pass a process its rank.
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def require_all_processes() -> None:
    """Check that ``accelerate launch`` has started as many processes as it was asked for.

    On a CPU without MPI, ``accelerate launch --num_processes N`` sets the address of a process group and then starts
    one process (accelerate's issue 2741). A run would then train with 1/N of the intended batch.

    Raises:
        UserError: it has started one process instead of several; the message names a command that starts all.
    """
    several_requested = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    if several_requested and not any(name in os.environ for name in _RANK_VARIABLES):
        raise UserError(
            "accelerate launch was asked for several processes but started one, because on a CPU it needs MPI: use "
            f"torchrun --nproc-per-node N {sys.argv[0]} ... instead, or --num_processes 1 with MASTER_ADDR unset"
        )
