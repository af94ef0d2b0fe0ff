"""Measurement of time, memory and peak performance for the benchmarks."""

import math
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

_GEMM_SIZE = 2048
_GEMM_REPEATS = 5


def interleaved_medians(
    functions: Mapping[str, Callable[[], object]], repeats: int, device: torch.device | str = "cpu"
) -> dict[str, float]:
    """Return the median seconds of each function over ``repeats`` rounds, after one warm-up round.

    Every round runs all functions once, so other load on the computer affects all of them equally. A function that runs
    out of GPU memory has infinite seconds.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            elapsed = math.inf if math.inf in seconds[name] else seconds_of(function, device)
            if repeat or math.isinf(elapsed):
                seconds[name].append(elapsed)
    return {name: statistics.median_high(values) for name, values in seconds.items()}


def peak_memory(function: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Return the peak memory in bytes of the tensors that ``function`` allocates, including its result."""
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        return torch.cuda.max_memory_allocated(device) - before
    # Without this setting the profiler prints a message on stderr when it starts and stops.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    in_use = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        in_use += event.nbytes()
        peak = max(peak, in_use)
    return peak


def gemm_peak(device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> float:
    """Return the GFLOP/s of the fastest of several large matrix products with the current number of threads."""
    x = torch.randn(_GEMM_SIZE, _GEMM_SIZE, device=device).to(dtype)
    best = min(seconds_of(lambda: x @ x, device) for _ in range(_GEMM_REPEATS + 1))
    return 2 * _GEMM_SIZE**3 / best / 1e9


def conditions(device: torch.device | str = "cpu") -> str:
    """Return one line that describes the software and hardware of a measurement."""
    if torch.device(device).type == "cuda":
        return f"torch {torch.__version__}, {torch.cuda.get_device_name(device)}"
    return f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}"


def source_commit() -> str:
    """Return the short hash of the checkout of this file, followed by "+" if files were changed, or "unknown"."""
    folder = str(Path(__file__).parent)
    commands = (["ls-files", "--error-unmatch", __file__], ["describe", "--always", "--dirty=+", "--exclude=*"])
    output = "unknown"
    for command in commands:
        try:
            done = subprocess.run(["git", "-C", folder, *command], capture_output=True, text=True, check=False)
        except OSError:
            return "unknown"
        if done.returncode != 0:
            return "unknown"
        output = done.stdout.strip()
    return output


def seconds_of(function: Callable[[], object], device: torch.device | str = "cpu") -> float:
    """Return the seconds of one call of ``function``, infinite if it runs out of GPU memory."""
    if torch.device(device).type != "cuda":
        begin = time.perf_counter()
        function()
        return time.perf_counter() - begin
    with torch.cuda.device(device):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        try:
            function()
        except torch.cuda.OutOfMemoryError:
            return math.inf
        end.record()
        torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3
