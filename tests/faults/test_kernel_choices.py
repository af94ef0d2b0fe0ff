"""Tests of damaged kernel-choices.json: the file is ignored with one warning, until a benchmark writes it again."""

import json
import os
import warnings
from pathlib import Path
from typing import Any

import pytest

from sashimi_kernels import choices
from tests.faults.damage import CHANGES

GPU = {"diagonal_kernel float32 1000": "torch", "diagonal_kernel float32 4000": "triton"}


@pytest.fixture
def chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SASHIMI_CACHE", str(tmp_path))
    return choices.save_choices("NVIDIA H100", GPU)


def assert_ignored() -> None:
    """Assert that the file is ignored with one warning, and that saving replaces it."""
    with pytest.warns(UserWarning, match=r"kernel-choices\.json is ignored \(.*creates it again") as caught:
        assert choices.load_choices() == {}
    assert len(caught) == 1
    with pytest.warns(UserWarning, match="is ignored"):
        choices.save_choices("NVIDIA H100", GPU)
    assert choices.load_choices() == {"NVIDIA H100": GPU}


@pytest.mark.parametrize("damage", CHANGES)
def test_damaged_choices_are_ignored(chosen: Path, damage: str) -> None:
    chosen.write_bytes(CHANGES[damage](chosen.read_bytes()))
    assert_ignored()


def test_every_flipped_byte_of_the_choices_is_noticed(chosen: Path) -> None:
    content = chosen.read_bytes()
    for position in range(len(content)):
        chosen.write_bytes(content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :])
        with pytest.warns(UserWarning, match="is ignored"):
            assert choices.load_choices() == {}


@pytest.mark.parametrize(
    "table", [None, [], "x", 3, {"A": None}, {"A": [GPU]}, {"A": {"x": 1}}, {"A": {"x": ["torch"]}}]
)
def test_choices_of_wrong_types_are_ignored(chosen: Path, table: Any) -> None:
    chosen.write_text(json.dumps(table))
    assert_ignored()


def test_choices_that_are_no_regular_file_are_ignored(chosen: Path) -> None:
    chosen.unlink()
    os.mkfifo(chosen)
    assert_ignored()


def test_choices_without_a_checksum_are_used(chosen: Path) -> None:
    """Older versions and `make gpu-check` write such files."""
    chosen.write_text(json.dumps({"NVIDIA H100": GPU}))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choices.load_choices() == {"NVIDIA H100": GPU}
