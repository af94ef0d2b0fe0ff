"""Tests of the free memory that is reported."""

from pathlib import Path

import pytest
import torch

from sashimi_diffusion import memory


def test_the_limit_of_the_container_is_respected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    monkeypatch.setattr(memory, "_CGROUP_LIMIT", tmp_path / "memory.max")
    free = memory.available_memory(cpu)
    assert free is not None
    assert free > 2**24
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.available_memory(cpu) > free / 2
    (tmp_path / "memory.max").write_text(f"{2**20}\n")
    assert memory.available_memory(cpu) < 2**20


def test_the_memory_of_other_devices_is_unknown() -> None:
    assert memory.available_memory(torch.device("meta")) is None
