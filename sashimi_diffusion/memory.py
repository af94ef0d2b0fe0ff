"""Measure how much memory is free, within the limit of a container."""

from pathlib import Path

import psutil
import torch

_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


def available_memory(device: torch.device) -> int | None:
    """Return the free bytes of a CUDA device or of main memory; None for other kinds of devices.

    Of a CUDA device, memory that PyTorch has reserved and does not use is free.

    In a container (cgroup v2), the result for main memory is not more than the memory limit of the container minus the
    memory that this process uses.
    """
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type != "cpu":
        return None
    available = psutil.virtual_memory().available
    limit = _CGROUP_LIMIT.read_text().strip() if _CGROUP_LIMIT.is_file() else "max"
    return available if limit == "max" else min(available, int(limit) - psutil.Process().memory_info().rss)
