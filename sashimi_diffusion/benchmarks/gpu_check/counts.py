"""Launches, bytes and synchronizations of the measured denoisers, counted on PyTorch's "meta" device without a GPU.

The report puts them beside the launches that the profiler sees, and divides the bytes by the measured time.
"""

import importlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch

from sashimi_diffusion.benchmarks.gpu_check import denoisers
from sashimi_diffusion.benchmarks.gpu_check.denoisers import Mode, Size
from sashimi_diffusion.benchmarks.gpu_check.rows import Row, Setting
from sashimi_diffusion.benchmarks.gpu_check.timing import attempted
from sashimi_kernels.backends import ENVIRONMENT_VARIABLE

COUNTER = "sashimi_kernels.counters"
META = "meta"


def measure(setting: Setting) -> Iterator[Row]:
    """Yield the counts of each forward pass and training step, by backend and precision."""
    try:
        counter = importlib.import_module(COUNTER).Counter
    except ImportError:
        yield Row("launches", problem=f"this version has no module {COUNTER}")
        return
    kinds: tuple[tuple[str, Callable[..., Any], list[Size]], ...] = (
        ("forward", _forward, denoisers.forward_sizes(setting.tiny)),
        ("training step", _training, denoisers.training_sizes(setting.tiny)),
    )
    for backend in ("triton", "torch"):
        os.environ[ENVIRONMENT_VARIABLE] = backend
        for kind, create, sizes in kinds:
            for size in sizes:
                for parameterization in denoisers.PARAMETERIZATIONS:
                    for precision in ("bfloat16", "float32"):
                        name, variant = f"counts of {kind} {size}", f"{parameterization}, {precision}, {backend}"

                        def row(create=create, size=size, parameterization=parameterization, precision=precision):
                            return create(counter, size, parameterization, precision, setting)

                        counted = attempted(name, variant, row, "cpu")
                        yield Row(name, variant, counted.value, counted.unit, counted.details, counted.problem)


def _forward(counter: Any, size: Size, parameterization: str, precision: str, setting: Setting) -> Row:
    with torch.device(META):
        model = denoisers.create_denoiser(size, parameterization, setting.tiny).eval()
    run = denoisers.forward_pass(model, _sample(size, setting), precision)
    with denoisers.cache_kernels(model):
        run()
        return _counted(counter, run)


def _training(counter: Any, size: Size, parameterization: str, precision: str, setting: Setting) -> Row:
    with torch.device(META):
        model = denoisers.create_denoiser(size, parameterization, setting.tiny).train()
    run = denoisers.training_step(model, _sample(size, setting), Mode(precision, graph=False))
    return _counted(counter, run)


def _sample(size: Size, setting: Setting) -> torch.Tensor:
    return denoisers.create_sample(size.batch, Setting(META, setting.tiny, setting.out))


def _counted(counter: Any, run: Callable[[], object]) -> Row:
    with counter() as counts:
        run()
    details = {"bytes": float(counts.bytes), "synchronizations": float(len(counts.synchronizations))}
    return Row("", "", counts.launches, "launches", details)
