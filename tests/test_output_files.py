"""Tests of files that a command writes where the user says."""

import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from sashimi_diffusion import output_files
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.output_files import check_output_files, write_output_file


def test_new_and_existing_files_are_written(tmp_path: Path) -> None:
    for content in (b"first", b"second"):
        check_output_files({"--json": tmp_path / "file", "--html": None})
        write_output_file(tmp_path / "file", content)
        assert (tmp_path / "file").read_bytes() == content
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_links_are_followed(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "target").write_text("old")
    (tmp_path / "link").symlink_to("folder/target")
    (tmp_path / "new").symlink_to("folder/new")
    for name in ("link", "new"):
        check_output_files({"--json": tmp_path / name})
        write_output_file(tmp_path / name, name.encode())
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / name).read_text() == name
    assert (tmp_path / "folder" / "target").read_text() == "link"


def test_devices_and_fifos_are_written_in_place(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append((tmp_path / "fifo").read_bytes()))
    reader.start()
    check_output_files({"--json": tmp_path / "fifo", "--html": Path("/dev/null"), "--csv": Path("/dev/null")})
    write_output_file(tmp_path / "fifo", b"content")
    write_output_file(Path("/dev/null"), b"content")
    reader.join(timeout=60)
    assert received == [b"content"]
    assert stat.S_ISFIFO(os.stat(tmp_path / "fifo").st_mode)
    assert stat.S_ISCHR(os.stat("/dev/null").st_mode)
    with pytest.raises(UserError, match="cannot write /dev/full: the disk is full"):
        write_output_file(Path("/dev/full"), b"content")


def test_an_open_pipe_is_written(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    path = Path(f"/dev/fd/{writing}")  # as a shell names it: >(program)
    check_output_files({"--json": path})
    write_output_file(path, b"content")
    os.close(writing)
    with open(reading, "rb") as pipe:
        assert pipe.read() == b"content"


def test_equal_targets_and_inputs_are_refused(tmp_path: Path) -> None:
    for name in ("clip.wav", "one"):
        (tmp_path / name).write_text(name)
    (tmp_path / "link").symlink_to("one")
    os.link(tmp_path / "clip.wav", tmp_path / "hard")
    inputs = [tmp_path / "clip.wav"]
    for first, second in {"one": "link", "new": "../" + tmp_path.name + "/new"}.items():
        with pytest.raises(UserError, match=f"--html .*{Path(second).name} is also --json: choose another file"):
            check_output_files({"--json": tmp_path / first, "--html": tmp_path / second})
    for name in ("clip.wav", "hard"):
        with pytest.raises(UserError, match=rf"--json .*{name} is also the input .*clip\.wav: choose another file"):
            check_output_files({"--json": tmp_path / name}, inputs)


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    server = socket.socket(socket.AF_UNIX)
    server.bind(os.path.relpath(tmp_path / "socket"))
    for path, message in {
        tmp_path: "is a folder: expected the name of a file",
        tmp_path / "socket": "is a socket: expected the name of a file",
        tmp_path / "none" / "file": "none does not exist",
        tmp_path / "file" / "below": "file is not a folder",
        tmp_path / ("x" * 300): "File name too long",
    }.items():
        with pytest.raises(UserError, match=message):
            check_output_files({"--json": path})
    server.close()
    assert (tmp_path / "file").read_text() == "mine"
    check_output_files({"--json": tmp_path / "none" / "file"}, new_folders=True)
    write_output_file(tmp_path / "none" / "file", b"content")
    assert (tmp_path / "none" / "file").read_bytes() == b"content"


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    check_output_files({"--json": path})
    write_output_file(path, b"content")
    assert path.read_bytes() == b"content"


def test_a_file_in_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file may be written, but it is replaced by a new one in its folder."""
    (tmp_path / "file").write_text("mine")
    access = os.access
    monkeypatch.setattr(output_files.os, "access", lambda path, mode: Path(path) != tmp_path and access(path, mode))
    for name in ("file", "new"):
        with pytest.raises(UserError, match=f"{name} cannot be written: permission denied"):
            check_output_files({"--json": tmp_path / name})
