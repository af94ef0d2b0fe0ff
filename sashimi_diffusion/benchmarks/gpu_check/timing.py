"""Time, memory and launched kernels of a function on the device, eager or captured as a CUDA graph."""

import gc
import math
import traceback
from collections.abc import Callable

import torch

from sashimi_diffusion.benchmarks.gpu_check.rows import Row
from sashimi_diffusion.cuda_graph import record_cuda_graph, run_on_side_stream
from sashimi_kernels.measuring import interleaved_medians, seconds_of

_SECONDS = 0.6  # per measurement, after the warm-up
_WARM_UPS = 3


def timed_row(name: str, variant: str, run: Callable[[], None], device: str, graph: bool = False) -> Row:
    """Return a row with the median milliseconds of ``run``; on CUDA also its peak memory and its kernels.

    Args:
        name, variant: see :class:`Row`.
        run: works on tensors of the device.
        device: "cuda" or "cpu".
        graph: capture ``run`` as a CUDA graph and measure its replays.
    """
    if device != "cuda":
        return Row(name, variant, 1e3 * median_seconds(run, device), "ms")
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    replay = captured(run) if graph else run
    seconds = median_seconds(replay, device)
    if math.isinf(seconds):
        return Row(name, variant, problem="out of memory")
    details: dict[str, float] = {"peak GiB": torch.cuda.max_memory_allocated() / 2**30}
    if launches := launched_kernels(replay):  # none without the permission to profile
        details["launches (profiler)"] = launches
    return Row(name, variant, 1e3 * seconds, "ms", details)


def attempted(name: str, variant: str, measure: Callable[[], Row], device: str) -> Row:
    """Return the row that ``measure`` returns, or a row with the error; the traceback goes to the log.

    The next measurement starts without the memory of this one. If the device does not work any more, the next use of it
    raises an error.
    """
    try:
        row = measure()
    except Exception as error:
        traceback.print_exc()
        lines = str(error).splitlines()
        row = Row(name, variant, problem=f"{type(error).__name__}: {lines[0] if lines else ''}"[:200])
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
    return row


def median_seconds(run: Callable[[], object], device: str) -> float:
    """Return the median seconds of ``run`` after warm-ups, infinite if it runs out of GPU memory."""
    once = min(seconds_of(run, device) for _ in range(2))
    if math.isinf(once):
        return once
    repeats = max(3, min(50, int(_SECONDS / max(once, 1e-6))))
    return interleaved_medians({"run": run}, repeats, device)["run"]


def captured(run: Callable[[], None]) -> Callable[[], None]:
    """Record ``run`` as a CUDA graph after warm-ups, and return a function that replays it."""
    for _ in range(_WARM_UPS):
        run_on_side_stream(run)
    return record_cuda_graph(run)


def launched_kernels(run: Callable[[], object]) -> int:
    """Return the number of kernels that one call of ``run`` starts according to PyTorch's profiler, without copies."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    events = profile.profiler.kineto_results.events()
    names = [event.name() for event in events if event.device_type() == torch.autograd.DeviceType.CUDA]
    return sum(not name.startswith(("Memcpy", "Memset")) for name in names)
