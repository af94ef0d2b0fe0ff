"""Launches, bytes and synchronizations of the measured denoisers, counted on PyTorch's "meta" device without a GPU.

The report puts them beside the launches that the profiler sees, and divides the bytes by the measured time.
"""

import os
from collections.abc import Callable, Iterator

import torch

from sashimi_diffusion.benchmarks.counters import MetaAdamW
from sashimi_diffusion.benchmarks.gpu_check import denoisers
from sashimi_diffusion.benchmarks.gpu_check.denoisers import Size
from sashimi_diffusion.benchmarks.gpu_check.rows import Row, Setting
from sashimi_diffusion.benchmarks.gpu_check.timing import attempted
from sashimi_diffusion.ssm import frozen
from sashimi_diffusion.training.config import OptimizerConfig
from sashimi_kernels.backends import ENVIRONMENT_VARIABLE
from sashimi_kernels.counters import Counter

COUNTS = "counts of"


def measure(setting: Setting) -> Iterator[Row]:
    """Yield the counts of each forward pass and training step, by backend and precision."""
    for backend in ("triton", "torch"):
        os.environ[ENVIRONMENT_VARIABLE] = backend
        for size in denoisers.forward_sizes(setting.tiny):
            yield from _rows(f"{COUNTS} forward {size}", size, backend, _forward, setting)
        for size in denoisers.training_sizes(setting.tiny):
            yield from _rows(f"{COUNTS} training step {size}", size, backend, _training, setting)


def _rows(name: str, size: Size, backend: str, count: Callable[..., Row], setting: Setting) -> Iterator[Row]:
    for parameterization in denoisers.PARAMETERIZATIONS:
        for precision in ("bfloat16", "float32"):
            how = denoisers.variant(parameterization, precision, backend)

            def row(parameterization: str = parameterization, precision: str = precision, how: str = how) -> Row:
                return count(name, how, size, parameterization, precision, setting)

            yield attempted(name, how, row, "cpu")


def _forward(name: str, how: str, size: Size, parameterization: str, precision: str, setting: Setting) -> Row:
    with torch.device("meta"):
        model = denoisers.create_denoiser(size, parameterization, setting.tiny).eval()
    run = denoisers.forward_pass(model, _sample(size, setting), precision)
    with frozen(model):
        with Counter():
            run()  # computes the kernels
        return _counted(name, how, run)


def _training(name: str, how: str, size: Size, parameterization: str, precision: str, setting: Setting) -> Row:
    with torch.device("meta"):
        model = denoisers.create_denoiser(size, parameterization, setting.tiny).train()
        optimizer = MetaAdamW(model, OptimizerConfig())
        scale, found_inf = torch.ones(()), torch.zeros(())
    loss_and_gradient = denoisers.gradient(model, _sample(size, setting), precision)

    def run() -> None:
        loss_and_gradient()
        optimizer.step(scale, found_inf)

    return _counted(name, how, run)


def _sample(size: Size, setting: Setting) -> torch.Tensor:
    return denoisers.create_sample(size.batch, Setting("meta", setting.tiny, setting.out))


def _counted(name: str, how: str, run: Callable[[], object]) -> Row:
    with Counter() as counts:
        run()
    details = {"bytes": float(counts.bytes), "synchronizations": float(len(counts.synchronizations))}
    return Row(name, how, counts.launches, "launches", details)
