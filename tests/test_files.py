"""Tests of writing files and folders that are either complete or absent."""

import errno
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.files import (
    file_written_beside,
    files_written_beside,
    folder_written_beside,
    folder_written_once,
    remove_abandoned,
    remove_empty_folders,
    remove_folder,
    write_file,
    writing,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def interrupt_after(_: object) -> None:
    raise KeyboardInterrupt


def test_a_file_is_replaced_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_file(path, b"old")
    with file_written_beside(path) as file:
        file.write(b"new")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new"
    assert names(tmp_path) == ["record.json"]


def test_a_failure_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    write_file(path, b"old")
    with pytest.raises(KeyboardInterrupt), file_written_beside(path) as file:
        interrupt_after(file.write(b"half"))
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["record.json"]


@pytest.mark.parametrize("write", [folder_written_beside, folder_written_once, files_written_beside])
def test_files_in_folders_have_the_rights_of_the_umask(write: Any, tmp_path: Path) -> None:
    path, umask = tmp_path / "checkpoint", os.umask(0o027)
    try:
        with write(path) as folder:
            (folder / "inner").mkdir()
            save_file({"weights": torch.zeros(1)}, folder / "inner" / "weights.safetensors")
            (folder / "script").touch()
            (folder / "script").chmod(0o700)
    finally:
        os.umask(umask)
    assert (path / "inner" / "weights.safetensors").stat().st_mode & 0o777 == 0o640
    assert (path / "script").stat().st_mode & 0o777 == 0o740
    assert names(path) == ["inner", "script"]


def test_writers_of_one_file_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "record.json"
    with file_written_beside(path) as first, file_written_beside(path) as second:
        first.write(b"first")
        second.write(b"second, longer")
    assert path.read_bytes() == b"first"  # the writer that finished last
    assert names(tmp_path) == ["record.json"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "parent" / "checkpoint"
    for name in ("old", "new"):
        with folder_written_beside(path) as folder:
            assert names(folder) == []
            (folder / name).touch()
    assert names(path) == ["new"]
    assert names(tmp_path / "parent") == ["checkpoint"]


def test_a_failure_leaves_the_old_folder(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    with folder_written_beside(path) as folder:
        (folder / "old").touch()
    with pytest.raises(KeyboardInterrupt), folder_written_beside(path) as folder:
        interrupt_after((folder / "new").touch())
    assert names(path) == ["old"]
    assert names(tmp_path) == ["checkpoint"]


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".checkpoint.tmp").mkdir()
    (tmp_path / ".checkpoint.tmp" / "half").touch()
    with folder_written_beside(tmp_path / "checkpoint") as folder:
        (folder / "whole").touch()
    assert names(tmp_path) == ["checkpoint"]
    assert names(tmp_path / "checkpoint") == ["whole"]


def test_the_first_of_several_writers_wins(tmp_path: Path) -> None:
    path = tmp_path / "entry"
    with folder_written_once(path) as first:
        (first / "first").touch()
        with folder_written_once(path) as second:
            (second / "second").touch()
    assert names(path) == ["second"]
    assert names(tmp_path) == ["entry"]


def test_many_writers_at_once_leave_one_complete_folder(tmp_path: Path) -> None:
    path, gate, failures = tmp_path / "entry", threading.Barrier(8), []

    def write() -> None:
        gate.wait()
        try:
            with folder_written_once(path) as folder:
                for name in ("a", "b", "c"):
                    write_file(folder / name, name.encode())
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert names(path) == ["a", "b", "c"]
    assert names(tmp_path) == ["entry"]


def test_a_folder_that_cannot_be_renamed_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "entry").touch()
    with pytest.raises(NotADirectoryError), folder_written_once(tmp_path / "entry"):
        pass
    assert names(tmp_path) == ["entry"]
    assert (tmp_path / "entry").is_file()


def test_only_abandoned_temporary_files_and_folders_are_removed(tmp_path: Path) -> None:
    for name in (".a.0123.tmp", ".fresh.4567.tmp", ".kept", "kept.tmp"):
        (tmp_path / name).touch()
    for name in (".b.tmp", ".active.tmp", "kept"):
        (tmp_path / name / "inside").mkdir(parents=True)
        (tmp_path / name / "inside" / "audio.f32").touch()
    long_ago = time.time() - 48 * 3600
    for path in [*tmp_path.rglob("*"), tmp_path]:
        if ".fresh" not in path.name and path.parent.parent.name != ".active.tmp":
            os.utime(path, (long_ago, long_ago))
    remove_abandoned(tmp_path)
    assert names(tmp_path) == [".active.tmp", ".fresh.4567.tmp", ".kept", "kept", "kept.tmp"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_the_error_names_a_full_disk(number: int) -> None:
    expected = "^cannot write to out: the disk is full; free some space or choose another place$"
    with pytest.raises(UserError, match=expected), writing("to out"):
        raise OSError(number, os.strerror(number))


def test_the_error_names_the_path_once(tmp_path: Path) -> None:
    path = tmp_path / "none" / "file"
    expected = f"^cannot write to {path}: No such file or directory; choose another place$"
    with pytest.raises(UserError, match=expected), writing(f"to {path}"):
        path.touch()
    expected = rf"^cannot write the record: No such file or directory \({path}\); ask$"
    with pytest.raises(UserError, match=expected), writing("the record", "ask"):
        path.touch()


def test_a_folder_is_never_seen_half_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "step-000001").mkdir()
    (tmp_path / "step-000001" / "model.safetensors").write_bytes(b"1")

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sashimi_diffusion.files.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_folder(tmp_path / "step-000001")
    assert not (tmp_path / "step-000001").exists()
    monkeypatch.undo()
    (tmp_path / "step-000002").mkdir()
    remove_folder(tmp_path / "step-000002")
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == []


def test_only_empty_folders_are_removed(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "file").touch()
    remove_empty_folders([tmp_path / "a" / "b", tmp_path / "a"])
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file"]
