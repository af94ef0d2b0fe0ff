"""The processes of a run: whether all were started, which one prints errors, and whether they are asked to end."""

import contextlib
import datetime
import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

import torch

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.terminal import say

# Variables in which torchrun and common MPI implementations pass a process its rank, and the number of processes.
_RANK_VARIABLES = ("RANK", "LOCAL_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_SIZE_VARIABLES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
# Variables that only accelerate launch and torchrun set. Users export ACCELERATE_MIXED_PRECISION, for example.
_ACCELERATE, _TORCHRUN = "ACCELERATE_DYNAMO_MODE", "TORCHELASTIC_RUN_ID"
_DIVIDED_MODELS = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "a parallelism_config",
}
_PATIENCE = 2.0
"""Seconds in which the first process of a machine has printed an error that all its processes have."""


def require_all_processes() -> None:
    """Check that ``accelerate launch`` has started as many processes as it was asked for.

    On a CPU without MPI, ``accelerate launch --num_processes N`` sets the address of a process group and then starts
    one process (accelerate's issue 2741). A run would then train with 1/N of the intended batch.

    Raises:
        UserError: it has started one process instead of several; the message names a command that starts all.
    """
    several_requested = _ACCELERATE in os.environ and "MASTER_ADDR" in os.environ
    if several_requested and not any(name in os.environ for name in _RANK_VARIABLES):
        raise UserError(
            "accelerate launch was asked for several processes but started one, because on a CPU it needs MPI: use "
            f"torchrun --nproc-per-node N {_started()} ... instead, or --num_processes 1 with MASTER_ADDR unset"
        )


def _started() -> str:
    """Return what this process runs, as torchrun takes it: a script, or a module after ``-m``."""
    module = sys.modules["__main__"].__spec__  # None for a script
    return sys.argv[0] if module is None else f"-m {module.name}"


def require_whole_models() -> None:
    """Check that the launcher does not divide the model among the processes.

    Raises:
        UserError: ``accelerate launch`` is set up for FSDP, DeepSpeed or a similar method.
    """
    for variable, name in _DIVIDED_MODELS.items():
        if os.environ.get(variable, "false").lower() in ("true", "1"):
            raise UserError(
                f"accelerate launch is set up for {name}, which divides a model among processes: models of 25 million "
                "parameters, the largest here, fit into half a gigabyte with their optimizer and only lose by it; use "
                "accelerate launch --multi_gpu --num_processes N, or torchrun --nproc-per-node N"
            )


def require_same_count(processes: int) -> None:
    """Check that the processes that a launcher has started work together.

    Args:
        processes: number of processes that Accelerate counts.

    Raises:
        UserError: the launcher has started another number. Each process would then do all of the work, and write it to
            the same folder.
    """
    started = next((os.environ[name] for name in _SIZE_VARIABLES if name in os.environ), None)
    if started is not None and started.strip() != str(processes):
        raise UserError(
            f"the launcher has started {started} process(es), but Accelerate counts {processes}, so they would do the "
            "same work and write the same files: use accelerate launch --multi_gpu --num_processes N on GPUs, torchrun "
            "--nproc-per-node N on CPUs, or one process without WORLD_SIZE"
        )


class SharedError(UserError):
    """An error of one process that all processes of a run raise, so that the first process of each machine prints."""


def prints_error(error: BaseException) -> bool:
    """Return whether this process prints an error that other processes of the run may have as well.

    The first process of each machine prints all its errors. Another process prints an error that the first one has not
    printed within two seconds.
    """
    if os.environ.get("LOCAL_RANK", "0") == "0":
        if not isinstance(error, SharedError):  # of which the others know that this process prints it
            _announce(error)
        return True
    if isinstance(error, (SharedError, KeyboardInterrupt)):
        return False
    with contextlib.suppress(RuntimeError):  # the process that holds the store has ended, and so has printed its error
        store = _connected_store()
        deadline = time.monotonic() + _PATIENCE
        while store is not None and not store.check([_key(error)]):
            if time.monotonic() > deadline:
                first = store.add(f"{_key(error)} printed", 1) == 1
                if first:
                    say("", sys.stderr)  # the progress bar of the first process may be in this line
                return first
            time.sleep(0.05)
    return False


def _announce(error: BaseException) -> None:
    """Tell the other processes of this machine that this one prints ``error``."""
    with contextlib.suppress(RuntimeError):  # the process that holds the store has ended
        store = _connected_store()
        if store is not None:
            store.set(_key(error), "1")


def _key(error: BaseException) -> str:
    place = [os.environ.get(name, "0") for name in ("GROUP_RANK", "TORCHELASTIC_RESTART_COUNT")]
    return f"sashimi {' '.join(place)} {hashlib.sha256(str(error).encode('utf-8', 'replace')).hexdigest()}"


def _connected_store() -> torch.distributed.TCPStore | None:
    """Return the store of the processes of this run; None: there is one process, or the store is not open yet."""
    # torchrun opens the store; otherwise the first process opens it together with the process group.
    is_open = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" or (
        torch.distributed.is_available() and torch.distributed.is_initialized()
    )
    if not is_open or os.environ.get("WORLD_SIZE", "1") == "1":
        return None
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return torch.distributed.TCPStore(address, port, is_master=False, timeout=datetime.timedelta(seconds=3))


class Launcher:
    """The program that started this process, if it was ``accelerate launch`` or ``torchrun``.

    Attributes:
        process: its process ID when this object was created, or None: there is no such program.
    """

    def __init__(self) -> None:
        launched = any(name in os.environ for name in (_ACCELERATE, _TORCHRUN))
        self.process = os.getppid() if launched else None

    def has_ended(self) -> bool:
        """Return whether the program has ended, for example because it was killed. On Windows, this is not known.

        The answer is also yes if SIGTERM has asked this process to end (:class:`Termination`).
        """
        # When the parent of a process ends, the system assigns another parent to it.
        return TERMINATION.is_due() or (self.process is not None and os.getppid() != self.process)


class Termination:
    """SIGTERM, with which ``timeout``, ``kill`` and clusters end a process.

    A run that calls :meth:`is_due` after each step can write a checkpoint first. Before its first step, and when the
    signal comes a second time, the process is interrupted at once, as Ctrl-C does.

    Attributes:
        obeyed: whether :meth:`is_due` has said that the signal has come.
    """

    def __init__(self) -> None:
        self._requested = self._watched = self.obeyed = False

    def is_due(self) -> bool:
        """Return whether the signal has come."""
        self._watched, self.obeyed = True, self._requested
        return self._requested

    @contextlib.contextmanager
    def awaited(self) -> Iterator[None]:
        """Wait for the signal in the block, unless the process ignores it or this is not its main thread."""
        self._requested = self._watched = self.obeyed = False
        in_main_thread = threading.current_thread() is threading.main_thread()
        if not in_main_thread or signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
            yield
            return
        usual = signal.signal(signal.SIGTERM, self._come)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, usual)

    def _come(self, *_: object) -> None:
        if self._requested or not self._watched:
            raise KeyboardInterrupt
        self._requested = True


TERMINATION = Termination()
"""Of this process."""


def is_lost_connection(error: RuntimeError) -> bool:
    """Return whether an error of PyTorch says that another process of the run has ended."""
    distributed = getattr(torch.distributed, "DistError", ())  # since torch 2.1; absent in builds without processes
    return isinstance(error, distributed) or "gloo" in str(error).lower()
