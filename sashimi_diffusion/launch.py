"""Check that every process that was requested has been started."""

import os
import sys

from sashimi_diffusion.errors import UserError

# How torchrun and the common MPI implementations tell a process its rank.
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


def require_all_processes() -> None:
    """Stop if ``accelerate launch`` was asked for several processes but started only this one.

    On a CPU without MPI, ``accelerate launch --num_processes N`` sets the address of a process group and then starts
    one process (issue 2741 of accelerate), which would train with an N-th of the intended batch.

    Raises:
        UserError: that is the case; the message names the command that starts all processes.
    """
    several_requested = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    if several_requested and not any(name in os.environ for name in _RANK_VARIABLES):
        raise UserError(
            "accelerate launch was asked for several processes but started one, because on a CPU it needs MPI: use "
            f"torchrun --nproc-per-node N {sys.argv[0]} ... instead, or --num_processes 1"
        )
