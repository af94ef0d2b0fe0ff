"""The parts of the check: their functions, the seconds that they are expected to take, and their processes."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sashimi_diffusion.benchmarks.gpu_check.rows import Row, Setting, read_rows

_PACKAGE = "sashimi_diffusion.benchmarks.gpu_check"
_POLL_SECONDS = 0.2
_SLACK = 0.2  # of the time of the check, for the first parts that need more than expected


class Part(NamedTuple):
    """A part of the check, which runs in a process of its own.

    Args:
        name: its name for ``--only``.
        title: what it measures.
        target: "module:function" of a generator of rows, called with the setting and ``arguments``.
        seconds: expected seconds on a GPU; they divide the time of the check among the parts.
        arguments: further arguments of the function.
        needs_cuda: whether it cannot run on a CPU.
        needs_peer: whether it needs the folder of the official code.
    """

    name: str
    title: str
    target: str
    seconds: float
    arguments: tuple[str, ...] = ()
    needs_cuda: bool = False
    needs_peer: bool = False


PARTS = (
    Part("card", "versions, copy bandwidth and matrix products of the card", f"{_PACKAGE}.card:measure", 12),
    Part("compilation", "the kernels of all parts", f"{_PACKAGE}.compilation:measure", 60, needs_cuda=True),
    Part("forward-triton", "forward passes, backend triton", f"{_PACKAGE}.denoisers:forward", 35, ("triton",), True),
    Part("training-triton", "training steps, backend triton", f"{_PACKAGE}.denoisers:training", 45, ("triton",), True),
    Part("profiles", "device time of every kernel", f"{_PACKAGE}.profiles:measure", 15, needs_cuda=True),
    Part("wavenet", "forward passes of WaveNet", f"{_PACKAGE}.denoisers:wavenet", 15),
    Part("sampling", "1 s of audio with the bundled pipeline", f"{_PACKAGE}.sampling:measure", 45),
    Part("streams", "autoregressive generation with every engine", f"{_PACKAGE}.streams:measure", 60),
    Part("recipe", "the small recipe and its bare step", f"{_PACKAGE}.recipe:measure", 25, ("muon", "fp32")),
    Part("recipe-bf16", "the same in bfloat16", f"{_PACKAGE}.recipe:measure", 25, ("muon", "bf16"), True),
    Part("recipe-adamw", "the same in bfloat16 with AdamW", f"{_PACKAGE}.recipe:measure", 25, ("adamw", "bf16"), True),
    Part("tests", "the GPU tests", f"{_PACKAGE}.gpu_tests:measure", 80, needs_cuda=True),
    Part("forward-torch", "forward passes, backend torch", f"{_PACKAGE}.denoisers:forward", 30, ("torch",)),
    Part("training-torch", "training steps, backend torch", f"{_PACKAGE}.denoisers:training", 40, ("torch",)),
    Part("operations", "kernel operations and the choices of backends", f"{_PACKAGE}.operations:measure", 40),
    Part("counts", "launches and bytes, counted without a GPU", f"{_PACKAGE}.counts:measure", 30),
    Part(
        "peer-extension",
        "the official code with its extension",
        f"{_PACKAGE}.peer:measure",
        40,
        ("with",),
        needs_peer=True,
    ),
    Part(
        "peer", "the official code without its extension", f"{_PACKAGE}.peer:measure", 40, ("without",), needs_peer=True
    ),
)


@dataclass(frozen=True)
class Outcome:
    """How a part ended: "done", "failed", "stopped" at its time limit, or "skipped"; with its rows."""

    part: str
    title: str
    status: str
    seconds: float = 0.0
    explanation: str = ""
    rows: list[Row] = dataclasses.field(default_factory=list)


def run_parts(parts: Sequence[Part], setting: Setting, seconds: float) -> Iterator[list[Outcome]]:
    """Run the parts one after the other, and yield all outcomes so far whenever a row or a part is finished.

    A part may run until the time left is what the later parts are expected to take.

    Args:
        parts: the parts.
        setting: their setting; rows and logs are written to ``setting.out``.
        seconds: time for all parts.
    """
    end = time.monotonic() + seconds
    scale = (1 - _SLACK) * seconds / max(sum(part.seconds for part in parts), 1)
    finished: list[Outcome] = []
    for index, part in enumerate(parts):
        reserved = scale * sum(later.seconds for later in parts[index + 1 :])
        for outcome in _run_part(part, setting, max(end - time.monotonic() - reserved, 1)):
            yield [*finished, outcome]
        finished.append(outcome)


def _run_part(part: Part, setting: Setting, limit: float) -> Iterator[Outcome]:
    """Run one part in a process group of its own, and yield its outcome after new rows and at its end."""
    reason = _reason_against(part, setting)
    if reason is not None:
        yield Outcome(part.name, part.title, "skipped", explanation=reason)
        return
    rows_file, log_file = (Path(setting.out) / f"{part.name}.{suffix}" for suffix in ("jsonl", "log"))
    rows_file.unlink(missing_ok=True)
    task = {"target": part.target, "arguments": part.arguments, "setting": dataclasses.asdict(setting)}
    command = [sys.executable, "-m", f"{_PACKAGE}.child", str(rows_file), json.dumps(task)]
    begin, written = time.monotonic(), 0
    with log_file.open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)

        def outcome(status: str, explanation: str = "") -> Outcome:
            rows = read_rows(rows_file)
            return Outcome(part.name, part.title, status, time.monotonic() - begin, explanation, rows)

        try:
            while process.poll() is None and time.monotonic() - begin < limit:
                time.sleep(_POLL_SECONDS)
                size = rows_file.stat().st_size if rows_file.exists() else 0
                if size > written:
                    written = size
                    yield outcome("running")
            stopped = process.poll() is None
        finally:
            _end(process)
    if stopped:
        yield outcome("stopped", f"stopped after {limit:.0f} s, the time left for it")
    elif process.returncode != 0:
        yield outcome("failed", _failure(process.returncode, log_file))
    else:
        yield outcome("done")


def _reason_against(part: Part, setting: Setting) -> str | None:
    if part.needs_cuda and setting.device != "cuda":
        return "it needs a CUDA device"
    return "no folder of the official code (--peer FOLDER)" if part.needs_peer and setting.peer is None else None


def _end(process: subprocess.Popen) -> None:
    """Kill the process group of a part: the process may hang in the driver, and may have started others."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _failure(code: int, log: Path) -> str:
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return f"{how}: {lines[-1][:200]}" if lines else how
