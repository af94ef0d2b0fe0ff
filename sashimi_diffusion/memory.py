"""Measure how much memory is free, within the limit of a container."""

from pathlib import Path

import psutil
import torch

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def available_memory(device: torch.device) -> int | None:
    """Return the free bytes of a CUDA device or of main memory; None for other kinds of devices.

    In a container (cgroup v2), main memory is limited to what its limit leaves to this process.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type != "cpu":
        return None
    available = psutil.virtual_memory().available
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.is_file() else "max"
    return available if limit == "max" else min(available, int(limit) - psutil.Process().memory_info().rss)
