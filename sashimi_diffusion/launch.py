"""The processes of a run: whether all of them were started, and whether another one or their launcher has ended."""

import os
import sys

import torch

from sashimi_diffusion.errors import UserError

# Variables in which torchrun and common MPI implementations pass a process its rank.
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
# Variables that accelerate launch and torchrun set.
_LAUNCHER_VARIABLES = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")


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
            f"torchrun --nproc-per-node N {_started()} ... instead, or --num_processes 1 with MASTER_ADDR unset"
        )


def _started() -> str:
    """Return what this process runs, as torchrun takes it: a script, or a module after ``-m``."""
    module = sys.modules["__main__"].__spec__  # None for a script
    return sys.argv[0] if module is None else f"-m {module.name}"


class Launcher:
    """The program that started this process, if it was ``accelerate launch`` or ``torchrun``.

    Attributes:
        process: its process ID when this object was created, or None: there is no such program.
    """

    def __init__(self) -> None:
        launched = any(name in os.environ for name in _LAUNCHER_VARIABLES)
        self.process = os.getppid() if launched else None

    def has_ended(self) -> bool:
        """Return whether the program has ended, for example because it was killed. On Windows, this is not known."""
        # When the parent of a process ends, the system assigns another parent to it.
        return self.process is not None and os.getppid() != self.process


def is_lost_connection(error: RuntimeError) -> bool:
    """Return whether an error of PyTorch says that another process of the run has ended."""
    distributed = getattr(torch.distributed, "DistError", ())  # since torch 2.1; absent in builds without processes
    return isinstance(error, distributed) or "gloo" in str(error).lower()
