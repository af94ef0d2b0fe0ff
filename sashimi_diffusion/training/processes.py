"""Several processes on a CPU from ``accelerate launch --cpu --num_processes N``.

Accelerate starts one process for that command, whatever N is, unless MPI is set up (its issue 2741). A run would then
quietly have an N-th of the batch that was asked for. So the process that it does start becomes the first of N here.
"""

import contextlib
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator

import psutil
import torch
from accelerate.commands.config import load_config_from_file
from accelerate.commands.launch import launch_command_parser

_LAUNCH = r"\baccelerate(_cli\.py)? launch$|\baccelerate-launch$|\baccelerate.commands.launch(\.py)?$"
# How torchrun and the usual MPIs tell a process which one it is.
_RANKS = ("RANK", "LOCAL_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")


@contextlib.contextmanager
def all_processes() -> Iterator[None]:
    """Run the block in as many processes as ``accelerate launch`` was asked for: starts the others if it did not."""
    count = 1 if _is_one_of_several() or torch.cuda.is_available() else processes_asked_for(_parent_command())
    if count == 1:
        yield
        return
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(count)}
    os.environ.update(address, LOCAL_WORLD_SIZE=str(count), RANK="0", LOCAL_RANK="0")
    others = [
        subprocess.Popen([sys.executable, *sys.argv], env={**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(1, count)
    ]
    try:
        yield
        for process in others:
            process.wait()
    finally:
        for process in others:
            process.kill()


def _is_one_of_several() -> bool:
    return any(name in os.environ for name in _RANKS)


def _parent_command() -> list[str]:
    try:
        return psutil.Process().parent().cmdline()
    except (psutil.Error, AttributeError):  # no parent, or one that may not be looked at
        return []


def processes_asked_for(command: list[str]) -> int:
    """The number of processes of an ``accelerate launch`` command line; 1 for any other command."""
    for place in range(len(command)):
        if re.search(_LAUNCH, " ".join(command[: place + 1])):
            arguments, _ = launch_command_parser().parse_known_args(command[place + 1 :])
            if arguments.num_processes is None and arguments.config_file is not None:
                arguments.num_processes = load_config_from_file(arguments.config_file).num_processes
            return max(1, arguments.num_processes or 1)
    return 1


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
