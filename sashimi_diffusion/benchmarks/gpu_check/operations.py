"""Kernel operations by backend, as ``python -m sashimi_kernels.benchmark`` measures them, and the choices they make.

``kernel-choices.json`` is a file of choices for this computer (for the folder ``$SASHIMI_CACHE``), and
``measured_choices.json`` the same for the package, see :mod:`sashimi_kernels.choices`.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch

import sashimi_kernels.benchmark as benchmark
from sashimi_diffusion.benchmarks.gpu_check.rows import Row, Setting
from sashimi_kernels import choices
from sashimi_kernels.measuring import source_commit
from sashimi_kernels.workloads import Sizes, workloads

_REPEATS = 5


def measure(setting: Setting) -> Iterator[Row]:
    """Yield a row for each operation, backend, dtype, batch, length and pass."""
    on_gpu = setting.device == "cuda"
    features, states, lengths = (2, 4, (20,)) if setting.tiny else (128, 32, choices.LENGTHS)
    backends = ["torch", "triton"] if on_gpu else ["torch"]
    device, repeats = torch.device(setting.device), 1 if setting.tiny else _REPEATS
    measured: list[benchmark.Row] = []
    for batch in (1, 2) if setting.tiny else (1, 16):
        for length in lengths:
            for dtype in (torch.bfloat16, torch.float32):
                for workload in workloads(Sizes(batch, features, states, length), dtype, setting.device):
                    try:
                        rows = benchmark.measure(workload, dtype, backends, repeats, device, batch)
                    except Exception as error:
                        message = f"{type(error).__name__}: {error}".splitlines()[0][:200]
                        yield Row(workload.operation, f"{dtype}, B {batch}, L {length}", problem=message)
                        continue
                    measured += rows
                    for row in rows:
                        yield from _shown(row)
            _save(measured, setting)
    for key, backend in sorted(benchmark.fastest(measured).items()):
        yield Row("choice", key, backend)


def _shown(row: benchmark.Row) -> Iterator[Row]:
    dtype = str(row.dtype).removeprefix("torch.")
    for backend, seconds in row.seconds.items():
        variant = f"{row.passes}, {dtype}, B {row.batch}, L {row.length}, {backend}"
        if math.isinf(seconds):
            yield Row(row.operation, variant, problem="out of memory")
        else:
            yield Row(row.operation, variant, 1e3 * seconds, "ms", {"peak GiB": row.memory[backend] / 2**30})


def _save(measured: list[benchmark.Row], setting: Setting) -> None:
    fastest = benchmark.fastest(measured)
    if fastest:
        name, out = torch.cuda.get_device_name(), Path(setting.out)
        (out / choices.choices_file().name).write_text(json.dumps({name: fastest}, indent=2, sort_keys=True) + "\n")
        choices.save_shipped_choices(name, fastest, source_commit(), out / choices.SHIPPED_CHOICES.name)
