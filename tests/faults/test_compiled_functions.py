"""Tests of the compiled functions that are kept in the cache folder: damaged ones are compiled again, and not run."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.damage import CHANGES

NO_NUMBA = "numba is not installed (pip install numba)"


@pytest.fixture
def compile_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Any]]:
    """Return a function that compiles a small function, or loads it from the empty cache folder of this test."""
    numba = pytest.importorskip("numba", reason=NO_NUMBA)
    from sashimi_diffusion.generation.numba_engine.compiled_cache import kept_on_disk

    monkeypatch.setenv("SASHIMI_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)

    def polynomial(x):
        return 3 * x * x + x

    return lambda: kept_on_disk(numba.njit(polynomial))


@pytest.mark.parametrize("damage", CHANGES)
def test_damaged_machine_code_is_compiled_again(
    compile_function: Callable[[], Any], tmp_path: Path, capsys: pytest.CaptureFixture, damage: str
) -> None:
    assert compile_function()(2.0) == 14
    (path,) = (tmp_path / "cache" / "compiled").iterdir()
    content = path.read_bytes()
    path.write_bytes(CHANGES[damage](content))
    capsys.readouterr()
    again = compile_function()
    assert again(2.0) == 14
    assert sum(again.stats.cache_misses.values()) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"note: {path} in the cache is damaged (" in said
    loaded = compile_function()
    assert loaded(2.0) == 14
    assert sum(loaded.stats.cache_hits.values()) == 1
    assert capsys.readouterr().err == ""


def test_machine_code_of_another_signature_is_not_run(
    compile_function: Callable[[], Any], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    function = compile_function()
    assert (function(2.0), function(2)) == (14.0, 14)
    first, second = sorted((tmp_path / "cache" / "compiled").iterdir())
    shutil.copy(first, tmp_path / "beside")
    shutil.copy(second, first)
    shutil.copy(tmp_path / "beside", second)
    function = compile_function()
    assert (function(2.0), function(2)) == (14.0, 14)
    assert capsys.readouterr().err.count("is damaged") == 2


def test_a_folder_that_cannot_be_written_is_said_once_per_function(
    compile_function: Callable[[], Any], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "cache").write_text("a file in the place of the folder")
    function = compile_function()
    assert (function(2.0), function(2.0)) == (14, 14)
    said = capsys.readouterr().err
    assert said.startswith("note: cannot keep compiled functions in ")
    assert said.count("\n") == 1
    assert "SASHIMI_CACHE" in said


def test_the_folder_of_numba_is_used_if_the_user_has_set_it(
    compile_function: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "numba"))
    assert compile_function()(2.0) == 14
    assert len(list((tmp_path / "numba").iterdir())) == 1
    assert not (tmp_path / "cache").exists()


def test_generation_keeps_its_machine_code_out_of_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("numba", reason=NO_NUMBA)
    from sashimi_diffusion.generation.numba_engine.step import run

    monkeypatch.setenv("SASHIMI_CACHE", str(tmp_path))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    assert run.stats.cache_path == str(tmp_path / "compiled")
