"""Test that freed memory is reused for the next tensors."""

import platform
import subprocess
import sys

import pytest

# Prints the pages that the operating system cleared for 128 MiB of tensors in each round (all, without the call).
_PROGRAM = """
import resource
import torch
from sashimi_kernels.allocation import keep_freed_memory

keep_freed_memory()
for _ in range(6):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(2**21) for _ in range(16)]
    del tensors
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library here is not glibc")
def test_pages_are_cleared_once() -> None:
    run = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    cleared = list(map(int, run.stdout.split()))
    assert cleared[-1] < cleared[0] / 10
