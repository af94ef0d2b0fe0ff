"""Device time of every kernel in a forward pass and a training step, by PyTorch's profiler: where the time goes."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterator

import torch
from torch.profiler import ProfilerActivity, profile

from sashimi_diffusion.benchmarks.gpu_check import denoisers
from sashimi_diffusion.benchmarks.gpu_check.denoisers import Mode, Size
from sashimi_diffusion.benchmarks.gpu_check.rows import Row, Setting
from sashimi_diffusion.ssm import frozen
from sashimi_kernels.backends import ENVIRONMENT_VARIABLE

_SHOWN = 12
_NAME_LENGTH = 80


def measure(setting: Setting) -> Iterator[Row]:
    """Yield the kernels that take the most time, with their launches and the longest and shortest of them."""
    os.environ[ENVIRONMENT_VARIABLE] = "triton"
    for size in denoisers.forward_sizes(setting.tiny):
        for parameterization in denoisers.PARAMETERIZATIONS:
            model = denoisers.create_denoiser(size, parameterization, setting.tiny).to(setting.device)
            sample = denoisers.create_sample(size.batch, setting)
            with frozen(model.eval()):
                run = denoisers.forward_pass(model, sample, "bfloat16")
                yield from _rows("forward", size, parameterization, run)
            if size in denoisers.training_sizes(setting.tiny):
                run = denoisers.training_step(model.train(), sample, Mode("bfloat16", False))
                yield from _rows("training step", size, parameterization, run)


def _rows(what: str, size: Size, parameterization: str, run: Callable[[], None]) -> Iterator[Row]:
    times = kernel_times(run)
    name = f"kernels of {what} {size}, {parameterization}, bfloat16"
    total = sum(map(sum, times.values()))
    yield Row(name, "all", total / 1e3, "ms", {"launches": sum(map(len, times.values()))})
    for kernel, each in sorted(times.items(), key=lambda item: -sum(item[1]))[:_SHOWN]:
        details = {"launches": len(each), "longest, us": max(each), "shortest, us": min(each)}
        yield Row(name, kernel[:_NAME_LENGTH], sum(each) / 1e3, "ms", details)


def kernel_times(run: Callable[[], object]) -> dict[str, list[float]]:
    """Return the device time of each launch in one call of ``run``, in microseconds, by the name of the kernel."""
    for _ in range(2):
        run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        run()
        torch.cuda.synchronize()
    times = defaultdict(list)
    for event in profiled.events() or ():
        if event.device_type == torch.autograd.DeviceType.CUDA:
            times[event.name].append(float(event.device_time))
    return dict(times)
