"""Benchmark of the time and memory of every operation, by backend.

    python -m sashimi_kernels.benchmark
    python -m sashimi_kernels.benchmark --features 64 --length 4000 --threads 1 --operation nplr_kernel
    python -m sashimi_kernels.benchmark --device cuda

Each row has the median times and the peak memory of the tensors. The repeats of the backends are interleaved, so other
load on the computer affects all of them equally. ``fft_convolution`` is the generation of a layer's kernels plus the
convolution by FFT.

On a CUDA or ROCm device the faster of ``torch`` and ``triton`` is saved for every operation, dtype and number of
samples in the batch. ``backend="auto"`` uses these choices (see :mod:`sashimi_kernels.choices`). ``--save-shipped``
writes them into the file of choices that the package ships instead; use it in a checkout with the default sizes.
"""

import argparse
import functools
import itertools
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

import sashimi_kernels
from sashimi_kernels.backends import available_backends, select_backend
from sashimi_kernels.choices import (
    CANDIDATES,
    LENGTHS,
    SHIPPED_CHOICES,
    choice_key,
    choices_file,
    nearest_size,
    save_choices,
    save_shipped_choices,
)
from sashimi_kernels.commands import Parser, UnusableError, positive, run
from sashimi_kernels.errors import BackendUnavailableError
from sashimi_kernels.measuring import conditions, gemm_peak, interleaved_medians, peak_memory, source_commit
from sashimi_kernels.workloads import OPERATIONS, Sizes, Workload, workloads

_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_DEFAULTS: dict[str, dict[str, Any]] = {
    "cpu": {"length": [16000], "dtype": ["float32"], "batch_size": [1], "repeats": 3},
    "cuda": {"length": list(LENGTHS), "dtype": list(_DTYPES), "batch_size": [1, 16], "repeats": 20},
}
_WITHOUT_BATCH = ("diagonal_kernel", "nplr_kernel")
_STEPWISE_LENGTH = 4000  # a reference implementation that iterates over longer signals would take minutes


class Row(NamedTuple):
    """Time in seconds and memory in bytes of one pass of one operation, by backend. Infinite time: out of memory."""

    operation: str
    length: int
    dtype: torch.dtype
    passes: str
    seconds: dict[str, float]
    memory: dict[str, int]
    batch: int = 1


def main() -> int:
    """Print the table, save the faster backends on a GPU and return the exit code."""
    return run(lambda: _benchmark(_arguments()))


def measure(
    workload: Workload, dtype: torch.dtype, backends: list[str], repeats: int, device: torch.device, batch: int = 1
) -> list[Row]:
    """Return a row for the forward pass and, if the workload has gradients, one for forward plus backward pass."""
    batch = 1 if workload.operation in _WITHOUT_BATCH else batch
    passes = {"forward": workload.forward}
    if workload.inputs:
        passes["forward + backward"] = workload.backward
    rows = []
    for name, evaluate in passes.items():
        functions = {backend: functools.partial(evaluate, backend) for backend in backends}
        seconds = interleaved_medians(functions, repeats, device)
        finished = {backend: functions[backend] for backend in backends if math.isfinite(seconds[backend])}
        memory = {backend: peak_memory(function, device) for backend, function in finished.items()}
        rows.append(Row(workload.operation, workload.length, dtype, name, seconds, memory, batch))
    return rows


def fastest(rows: list[Row]) -> dict[str, str]:
    """Return the faster backend by ``choice_key``. A row with gradients replaces the row of the forward pass alone.

    A layer that does not convolve in chunks by "triton" convolves by FFT, so the time of "torch" in the choice for
    ``chunked_convolution`` is that of ``fft_convolution``, where it was measured.
    """

    def case(row: Row) -> tuple:
        return row.batch, row.length, row.dtype, row.passes

    fft = {case(row): row.seconds for row in rows if row.operation == "fft_convolution"}
    choices = {}
    for row in rows:
        seconds = {name: row.seconds[name] for name in CANDIDATES if name in row.seconds}
        if len(seconds) < len(CANDIDATES) or not hasattr(sashimi_kernels, row.operation):
            continue
        if row.operation == "chunked_convolution" and case(row) in fft:
            seconds["torch"] = min(fft[case(row)][name] for name in CANDIDATES)
        key = choice_key(row.operation, row.dtype, nearest_size(row.batch * row.length))
        choices[key] = min(CANDIDATES, key=seconds.__getitem__)
    return choices


def _benchmark(arguments: argparse.Namespace) -> int:
    device = arguments.device
    backends = _backends(arguments.backend, device)
    print(f"H {arguments.features}, N {arguments.states}, batch {_list(arguments.batch_size)}; {conditions(device)}")
    print(f"matrix product, 2048 x 2048 float32: {gemm_peak(device):.0f} GFLOP/s")
    print(
        f"{'operation':<23}{'L':>6} {'dtype':<9}{'pass':<19}" + "".join(f"{name:>26}" for name in backends) + "  faster"
    )
    choices = fastest(list(_rows(arguments, backends)))
    if device.type == "cuda" and choices:
        print(f"saved the faster backends for backend='auto': {_saved(device, choices, arguments)}")
    return 0


def _rows(arguments: argparse.Namespace, backends: list[str]) -> Iterator[Row]:
    """Measure and print all rows."""
    several = len(arguments.batch_size) > 1
    for batch, dtype, length in itertools.product(arguments.batch_size, arguments.dtype, arguments.length):
        if several:
            print(f"batch {batch}:")
        sizes = Sizes(batch, arguments.features, (arguments.states + 1) // 2, length)
        for workload in _workloads(sizes, dtype, arguments):
            takes_minutes = workload.stepwise and length > _STEPWISE_LENGTH
            timed = [name for name in backends if not (takes_minutes and name == "reference")]
            for row in measure(workload, _DTYPES[dtype], timed, arguments.repeats, arguments.device, batch):
                print(_line(row, backends), flush=True)
                yield row


def _workloads(sizes: Sizes, dtype: str, arguments: argparse.Namespace) -> Iterator[Workload]:
    for workload in workloads(sizes, _DTYPES[dtype], arguments.device):
        chosen = not arguments.operation or workload.operation in arguments.operation
        # A recurrence step does not depend on the length, and the generation of kernels not on the batch.
        other_length = workload.length == 1 and sizes.length != arguments.length[0]
        other_batch = workload.operation in _WITHOUT_BATCH and sizes.batch != arguments.batch_size[0]
        if chosen and not (other_length or other_batch):
            yield workload


def _arguments() -> argparse.Namespace:
    parser = Parser(__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda, also for ROCm (default: cpu)")
    parser.add_argument("--features", type=positive, default=128, help="features H (default: 128)")
    parser.add_argument(
        "--states", type=positive, default=64, help="states, counting both halves of the conjugate pairs (default: 64)"
    )
    parser.add_argument("--batch-size", type=positive, nargs="+", help="batch sizes (default: 1, on a GPU 1 and 16)")
    parser.add_argument("--length", type=positive, nargs="+", help="samples L (default: 16000, on a GPU 1000 to 64000)")
    for option, names, what in (
        ("--dtype", tuple(_DTYPES), "float32, on a GPU all"),
        ("--backend", available_backends(), "all that can run"),
        ("--operation", OPERATIONS, "all"),
    ):
        described = f"any of {', '.join(names)} (default: {what})"
        parser.add_argument(option, choices=names, nargs="+", metavar="NAME", help=described)
    parser.add_argument("--repeats", type=positive, help="timed repeats per backend (default: 3, on a GPU 20)")
    parser.add_argument("--save-shipped", action="store_true", help="write the choices into the file of the package")
    parser.add_argument("--threads", type=positive, help="CPU threads (default: that of PyTorch)")
    arguments = parser.parse_args()
    arguments.device = _device(arguments.device)
    for name, default in _DEFAULTS[arguments.device.type].items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, default)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    return arguments


def _device(name: str) -> torch.device:
    expected = ", ".join(_DEFAULTS)
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UnusableError(f"the device {name!r} is not one of {expected}") from error
    if device.type not in _DEFAULTS:
        raise UnusableError(f"the device {name!r} is not one of {expected}")
    if device.type == "cuda" and not (torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count()):
        raise UnusableError(f"this PyTorch finds no CUDA or ROCm device {name!r}: use --device cpu")
    return device


def _backends(wanted: list[str] | None, device: torch.device) -> list[str]:
    """Return the requested backends, which must be able to run, or all that can run."""
    # On a CPU, Triton runs in an interpreter for tests, which is thousands of times slower.
    names = [name for name in available_backends() if name != "triton" or device.type == "cuda"]
    backends = []
    for name in wanted or names:
        try:
            select_backend(name, device, "diagonal_kernel")
        except BackendUnavailableError as error:
            if wanted:
                raise UnusableError(str(error)) from error
            print(f"without {name}: {error}")
        else:
            backends.append(name)
    return backends


def _saved(device: torch.device, choices: dict[str, str], arguments: argparse.Namespace) -> Path:
    name, path = torch.cuda.get_device_name(device), SHIPPED_CHOICES if arguments.save_shipped else choices_file()
    try:
        if arguments.save_shipped:
            save_shipped_choices(name, choices, source_commit())
        else:
            save_choices(name, choices)
    except OSError as error:
        advice = "use a checkout" if arguments.save_shipped else "set SASHIMI_CACHE to another folder"
        raise UnusableError(f"cannot write to {path} ({error.strerror or error}): {advice}") from error
    return path


def _list(values: list[int]) -> str:
    return ", ".join(map(str, values))


def _line(row: Row, backends: list[str]) -> str:
    columns = f"{row.operation:<23}{row.length:>6} {str(row.dtype).removeprefix('torch.'):<9}{row.passes:<19}"
    cells = "".join(f"{_cell(row.seconds.get(name), row.memory.get(name)):>26}" for name in backends)
    others = [seconds for name, seconds in row.seconds.items() if name != "reference"]
    if "reference" not in row.seconds or not others:
        return columns + cells
    return f"{columns}{cells}{row.seconds['reference'] / min(others):>7.1f}x"


def _cell(seconds: float | None, memory: int | None) -> str:
    if seconds is None:
        return "-"
    if memory is None:
        return "out of memory"
    digits = 1 if seconds >= 0.01 else 3
    return f"{seconds * 1e3:,.{digits}f} ms{memory / 2**20:>9,.1f} MiB"


if __name__ == "__main__":
    sys.exit(main())
