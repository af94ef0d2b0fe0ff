"""Set up Accelerate from a config: device, precision, processes, threads and trackers."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType, ProjectConfiguration, broadcast_object_list

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.training.config import RunConfig
from sashimi_diffusion.training.settings import unknown_key

_PRECISIONS = {"fp32": "no", "bf16": "bf16", None: None}


def create_accelerator(config: RunConfig) -> Accelerator:
    """Return an Accelerator for the run.

    Raises:
        UserError: a tracker does not exist or is not installed, or the precision is float16, which the loop does not
            support.
    """
    accelerator = Accelerator(
        cpu=_has_only_cpu(),  # without it, Accelerate ignores processes that torchrun starts on a CPU
        mixed_precision=_PRECISIONS[config.training.mixed_precision],
        log_with=_installed(config.training.trackers) or None,
        project_config=ProjectConfiguration(project_dir=config.output_dir, logging_dir=config.output_dir),
        # The last residual layer of a WaveNet and, inside a recording, the initial state of a SampleRNN have no
        # gradient, because no output depends on them.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=config.model.name != "sashimi")],
    )
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise UserError(f"mixed precision {accelerator.mixed_precision} is not supported: use bf16 or no")
    return accelerator


def _has_only_cpu() -> bool:
    """Return whether there is no device except the CPU."""
    if hasattr(torch, "accelerator"):  # since torch 2.6
        return not torch.accelerator.is_available()
    return not (torch.cuda.is_available() or torch.backends.mps.is_available())


def set_threads(accelerator: Accelerator, threads: int | None) -> None:
    """Set the number of threads of this process on a CPU; None: its share of all cores.

    ``accelerate launch`` sets one thread per process.
    """
    if accelerator.device.type == "cpu":
        torch.set_num_threads(threads or max(1, available_cores() // accelerator.num_processes))


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def main_process_first(accelerator: Accelerator) -> Iterator[None]:
    """Run the block on the main process, and then on the others.

    It differs from the method of ``Accelerator`` if the block raises a UserError on the main process: the others raise
    it as well, and do not wait forever.
    """
    if not accelerator.is_main_process:
        _share(None)
    try:
        yield
    except UserError as error:
        if accelerator.is_main_process:
            _share(error)
        raise
    if accelerator.is_main_process:
        _share(None)


def _share(error: UserError | None) -> None:
    """Send the error of the main process to the others; on these, raise it."""
    texts = broadcast_object_list([None if error is None else str(error)])
    if error is None and texts[0] is not None:
        raise UserError(texts[0])


def mean_over_processes(accelerator: Accelerator, value: float) -> float:
    """Return the mean of the values of all processes, which all call this function."""
    if accelerator.num_processes == 1:
        return value
    return accelerator.reduce(torch.tensor(value, device=accelerator.device), "mean").item()


def _installed(names: list[str]) -> list[str]:
    """Return the installed trackers of ``names``.

    Raises:
        UserError: a tracker does not exist or is not installed. A missing tensorboard, the default, is no error.
    """
    available = [str(tracker.value) for tracker in get_available_trackers()]
    for name in names:
        if name not in [str(tracker.value) for tracker in LoggerType]:
            raise unknown_key(name, (str(tracker.value) for tracker in LoggerType), "training.trackers ")
        if name not in available and name != "tensorboard":
            raise UserError(f"training.trackers names {name}, which is not installed: pip install {name}")
    return [name for name in names if name in available]


def start_trackers(accelerator: Accelerator, settings: dict, step: int) -> None:
    """Open the trackers of a run.

    Args:
        accelerator: of the run.
        settings: the config as a nested dictionary, which the trackers store.
        step: optimizer steps done. In a resumed run, tensorboard drops values of later steps, as metrics.jsonl does.
    """
    if accelerator.log_with:
        Path(accelerator.logging_dir).mkdir(parents=True, exist_ok=True)
        options = {"tensorboard": {"purge_step": step + 1}}
        used = {tracker if isinstance(tracker, str) else tracker.value for tracker in accelerator.log_with}
        accelerator.init_trackers(
            "tensorboard",
            config=_flat(settings),
            init_kwargs={name: value for name, value in options.items() if name in used},
        )


def _flat(tree: dict, prefix: str = "") -> dict[str, int | float | str | bool]:
    """Return {"a": {"b": [1]}} as {"a.b": "[1]"}, because trackers accept plain values only."""
    flat: dict[str, int | float | str | bool] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat
