"""Set up Accelerate from a config: device, precision, processes and threads."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import ProjectConfiguration, gather_object

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.launch import SharedError, require_same_count, require_whole_models
from sashimi_diffusion.terminal import printable
from sashimi_diffusion.training.config import RunConfig

_PRECISIONS = {"fp32": "no", "bf16": "bf16", None: None}
_TURNS = 3


def create_accelerator(config: RunConfig) -> Accelerator:
    """Return an Accelerator for the run.

    Raises:
        UserError: the launcher divides models among processes or has started processes that do not work together, or
            the precision is float16, which the loop does not support.
    """
    require_whole_models()
    accelerator = Accelerator(
        cpu=_has_only_cpu(),  # without it, Accelerate ignores processes that torchrun starts on a CPU
        mixed_precision=_PRECISIONS[config.training.mixed_precision],
        project_config=ProjectConfiguration(project_dir=config.output_dir),
        # The last residual layer of a WaveNet and, inside a recording, the initial state of a SampleRNN have no
        # gradient, because no output depends on them.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=config.model.name != "sashimi")],
    )
    require_same_count(accelerator.num_processes)
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise UserError(f"mixed precision {accelerator.mixed_precision} is not supported: use bf16 or no")
    return accelerator


def _has_only_cpu() -> bool:
    """Return whether there is no device except the CPU."""
    if hasattr(torch, "accelerator"):  # since torch 2.6
        return not torch.accelerator.is_available()
    return not (torch.cuda.is_available() or torch.backends.mps.is_available())


def set_threads(accelerator: Accelerator, threads: int | None) -> None:
    """Set the number of threads of this process on a CPU; None: its share of all cores of its machine.

    ``accelerate launch`` sets one thread per process.
    """
    if accelerator.device.type == "cpu":
        local = int(os.environ.get("LOCAL_WORLD_SIZE", accelerator.num_processes))
        torch.set_num_threads(threads or max(1, available_cores() // local))


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def main_process_first(accelerator: Accelerator) -> Iterator[None]:
    """Run the block on the main process, then on the first process of each other machine, and then on all others.

    What the main process prepares, for example a cache, is then there for the others; machines whose disks are their
    own prepare it once each. It differs from the method of ``Accelerator`` if the block raises a UserError on a
    process: all others raise it as well, and do not wait forever.
    """
    turn = 0 if accelerator.is_main_process else 1 if accelerator.is_local_main_process else 2
    for _ in range(turn):
        _share(accelerator, None)
    try:
        yield
    except UserError as error:
        _share(accelerator, error)
        raise SharedError(str(error)) from error
    for _ in range(turn, _TURNS):
        _share(accelerator, None)


def _share(accelerator: Accelerator, error: UserError | None) -> None:
    """Send the error of a process, if it has one, to all others; raise the first error of another process."""
    if accelerator.num_processes == 1:
        return
    texts = gather_object([None if error is None else str(error)])
    first = next((text for text in texts if text is not None), None)
    if error is None and first is not None:
        raise SharedError(first)


def require_shared_checkpoint(accelerator: Accelerator, run: Path, checkpoint: Path | None) -> None:
    """Check that all processes resume from the same checkpoint.

    Raises:
        UserError: the run folder of another machine has another newest checkpoint, or none.
    """
    if accelerator.num_processes == 1:
        return
    names = gather_object([None if checkpoint is None else checkpoint.name])
    if len(set(names)) > 1:
        other = next(name for name in names if name != names[0])
        raise SharedError(
            f"the first process resumes from {names[0] or 'no checkpoint'}, but another machine has "
            f"{other or 'no checkpoint'} in {printable(run)}: to resume, output_dir must be a folder that all machines "
            "share, or each machine needs a copy of it"
        )


def mean_over_processes(accelerator: Accelerator, value: float) -> float:
    """Return the mean of the values of all processes, which all call this function."""
    if accelerator.num_processes == 1:
        return value
    return accelerator.reduce(torch.tensor(value, device=accelerator.device), "mean").item()
