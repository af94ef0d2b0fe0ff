"""Run many command lines quickly: each in a forked child of one process that has imported everything once.

:func:`children` starts that process. It runs no computation itself, so a fork is safe. A child has a working folder, a
cache and a home of its own, limits of time and memory, and no capability to pass over permissions, so a test runs as
root like as an ordinary user. Two children run at a time.
"""

import atexit
import functools
import itertools
import json
import os
import select
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TIMED_OUT = "timed out"
FORBIDDEN = {"secret": 0o000, "readonly": 0o555}
"""Permissions that files and folders with these names have during a call; other files have those of the template."""

COMMANDS = {
    "sashimi-sample": "sashimi_diffusion.commands.sample",
    "sashimi-push": "sashimi_diffusion.commands.push",
    "sashimi-evaluate": "sashimi_evaluation.commands.evaluate",
    "sashimi-convert": "sashimi_evaluation.commands.convert",
    "sashimi-train": "sashimi_evaluation.commands.train",
    "sashimi_diffusion.commands.train": "sashimi_diffusion.commands.train",
    "train_diffwave_sashimi.py": "recipes",
    "train_autoregressive_sashimi.py": "recipes",
    "train_digit_classifier.py": "recipes",
    "sashimi_kernels.benchmark": "sashimi_kernels.benchmark",
    "sashimi_kernels.warm_up": "sashimi_kernels.warm_up",
    "sashimi_kernels.aot": "sashimi_kernels.aot",
    "sashimi_diffusion.benchmarks.denoiser": "sashimi_diffusion.benchmarks.denoiser",
    "sashimi_diffusion.benchmarks.generation": "sashimi_diffusion.benchmarks.generation",
    "sashimi_diffusion.benchmarks.counters": "sashimi_diffusion.benchmarks.counters",
    "sashimi_diffusion.benchmarks.gpu_check": "sashimi_diffusion.benchmarks.gpu_check.__main__",
    "sashimi_evaluation.benchmark": "sashimi_evaluation.benchmark",
}
"""Name of each command -> its module; a recipe is a file."""


@dataclass(frozen=True)
class Call:
    """A command line to run.

    Args:
        command: one of ``COMMANDS``.
        arguments: its arguments.
        encoding: encoding of stdout and stderr.
        reader: whether somebody reads stdout; False: it is a pipe that is closed at the other end.
        umask: the umask of the process.
        fault: arguments of :func:`tests.faults.file_operations.inject`, or None.
        seconds: limit of time.
        gigabytes: limit of the memory that it may allocate.
    """

    command: str
    arguments: tuple[str, ...] = ()
    encoding: str = "utf-8"
    reader: bool = True
    umask: int = 0o022
    fault: dict[str, Any] | None = None
    seconds: float = 60.0
    gigabytes: float = 2.0


@dataclass(frozen=True)
class Result:
    """What a call did.

    Attributes:
        code: exit code, minus the number of the signal that ended the process, or ``TIMED_OUT``.
        out: text of stdout.
        err: text of stderr.
        created: paths that the call created in the working folder.
        changed: paths there that it changed or removed.
    """

    code: int | str
    out: str
    err: str
    created: list[str]
    changed: list[str]


class Children:
    """The process that forks, and the calls that it runs."""

    def __init__(self) -> None:
        kept = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
        paths = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "evaluation"), os.environ.get("PYTHONPATH", "")]
        environment = kept | {
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "CUDA_VISIBLE_DEVICES": "",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            # Large pages halve the time of a fork.
            "PYTHONMALLOC": "malloc",
            "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        }
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.forked_server"],
            env=environment,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self._results: dict[int, Result] = {}
        self._unread = b""
        self._numbers = itertools.count()

    def start(self, call: Call, folder: Path | None = None, template: Path | None = None) -> int:
        """Queue a call, and return its number.

        Args:
            call: the call.
            folder: the working folder; its cache and its home are beside it.
            template: instead of ``folder``, a folder of which the call gets a copy.
        """
        number = next(self._numbers)
        folders = {"folder": folder and str(folder), "template": template and str(template)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asdict(call) | folders | {"number": number}).encode() + b"\n")
        self._process.stdin.flush()
        return number

    def result(self, number: int) -> Result:
        """Wait for the call with this number and return its result."""
        assert self._process.stdout is not None
        while number not in self._results:
            ready, _, _ = select.select([self._process.stdout], [], [], 300)
            block = os.read(self._process.stdout.fileno(), 1 << 16) if ready else b""
            assert block, "the process that forks does not answer"
            *lines, self._unread = (self._unread + block).split(b"\n")
            for line in lines:
                content = json.loads(line)
                finished = content.pop("number")
                self._results[finished] = Result(**content)
        return self._results.pop(number)

    def run(self, call: Call, folder: Path | None = None, template: Path | None = None) -> Result:
        """Run one call and return its result."""
        return self.result(self.start(call, folder, template))

    def stop(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


@functools.cache
def children() -> Children:
    """Return the process that forks; it is started at the first call and ends with the tests."""
    started = Children()
    atexit.register(started.stop)
    return started
