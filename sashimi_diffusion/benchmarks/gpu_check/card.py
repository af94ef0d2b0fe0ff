"""The card: its name, versions of the software, and the peaks against which the report gives shares."""

import os
import platform
import subprocess
from collections.abc import Callable, Iterator
from importlib import metadata

import torch

from sashimi_diffusion.benchmarks.gpu_check.rows import Row, Setting
from sashimi_kernels.measuring import seconds_of

COPY = "copy bandwidth"
_REPEATS = 20


def measure(setting: Setting) -> Iterator[Row]:
    """Yield the properties and the measured peaks of the device."""
    yield from _properties(setting)
    yield _copy(2**16 if setting.tiny else 2**28, setting.device)  # 1 GiB of float32, more than any cache
    for dtype, size in ((torch.bfloat16, 8192), (torch.float32, 4096)):
        yield _matrix_product(dtype, 64 if setting.tiny else size, setting.device)


def _copy(elements: int, device: str) -> Row:
    source = torch.ones(elements, device=device)
    target = torch.empty_like(source)
    seconds = _fastest(lambda: target.copy_(source), device)
    return Row(COPY, f"{source.nbytes / 2**30:g} GiB", 2 * source.nbytes / seconds / 1e9, "GB/s")


def _matrix_product(dtype: torch.dtype, size: int, device: str) -> Row:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(a)
    seconds = _fastest(lambda: torch.matmul(a, b, out=product), device)
    name = f"matrix product, {str(dtype).removeprefix('torch.')}"
    return Row(name, f"{size} x {size}", 2 * size**3 / seconds / 1e12, "TFLOP/s")


def _properties(setting: Setting) -> Iterator[Row]:
    if setting.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        yield Row("name", value=properties.name)
        yield Row("memory", value=properties.total_memory / 2**30, unit="GiB")
        yield Row("multiprocessors", value=properties.multi_processor_count)
        yield Row("driver", value=_driver())
        yield Row("CUDA of PyTorch", value=str(torch.version.cuda or torch.version.hip))
    yield Row("CPU", value=f"{platform.machine()}, {os.cpu_count()} cores")
    yield Row("python", value=platform.python_version())
    for package in ("torch", "triton", "diffusers", "accelerate"):
        try:
            yield Row(package, value=metadata.version(package))
        except metadata.PackageNotFoundError:
            yield Row(package, problem="not installed")


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return lines[0].strip() if lines else "unknown"


def _fastest(run: Callable[[], object], device: str) -> float:
    return min(seconds_of(run, device) for _ in range(_REPEATS))
