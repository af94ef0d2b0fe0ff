"""Tests of looking at paths and reading small files: every failure is one line that names the path."""

import os
import socket
from pathlib import Path

import pytest

from sashimi_diffusion import paths
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.paths import is_file, is_folder, kind, read_bytes, read_json, read_text, require_file, status


@pytest.fixture
def loop(tmp_path: Path) -> Path:
    (tmp_path / "loop").symlink_to(tmp_path / "pool")
    (tmp_path / "pool").symlink_to(tmp_path / "loop")
    return tmp_path / "loop"


def test_what_exists(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nothing")
    assert [is_file(tmp_path / name) for name in ("file", "link", "dangling", "none", "file/below")] == [
        *(True, True, False, False, False)
    ]
    assert is_folder(tmp_path)
    assert is_folder(str(tmp_path))
    assert not is_folder(tmp_path / "file")
    assert status(tmp_path / "dangling") is None


@pytest.mark.parametrize("look", [status, is_file, is_folder, lambda path: read_bytes(path, "text")])
def test_paths_that_cannot_be_examined(look, loop: Path) -> None:
    for path, reason in {
        loop: "Too many levels of symbolic links",
        loop.parent / ("x" * 300): "File name too long",
        "x" * 5000: "File name too long",
        "a\0b": "embedded null",
    }.items():
        with pytest.raises(UserError, match=f"cannot use .*: {reason}") as caught:
            look(path)
        assert "\0" not in str(caught.value)


def test_a_forbidden_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(paths.os, "stat", forbidden)  # the superuser may enter every folder
    for look in (status, is_file, is_folder):
        with pytest.raises(UserError, match="cannot use x/file: Permission denied"):
            look("x/file")


def test_only_regular_files_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    server = socket.socket(socket.AF_UNIX)
    server.bind(os.path.relpath(tmp_path / "socket"))
    for path, expected in {
        tmp_path: "a folder",
        tmp_path / "fifo": "a FIFO",
        tmp_path / "socket": "a socket",
        Path("/dev/zero"): "a device",
    }.items():
        assert kind(os.stat(path)) == expected
        for read in (require_file, read_bytes, read_text, read_json):
            with pytest.raises(UserError, match=f"{path.name} is {expected}: expected a config$"):
                read(path, "a config")
    server.close()


def test_a_missing_file_is_named_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\\n\.json does not exist: expected a config$"):
        require_file(tmp_path / "none\n.json", "a config")


def test_a_file_that_may_not_be_read_is_not_called_corrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.json"
    path.write_text("{}")

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", forbidden)  # the superuser may read every file
    for read in (read_bytes, read_text, read_json):
        with pytest.raises(UserError, match=r"^cannot read .*config\.json: Permission denied$"):
            read(path, "a config")


def test_contents(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(b'{"a": [1]}')
    assert read_bytes(path, "a config") == b'{"a": [1]}'
    assert read_text(path, "a config") == '{"a": [1]}'
    assert read_json(path, "a config") == {"a": [1]}
    assert require_file(path, "a config").st_size == 10


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"{", r"is not JSON \(Expecting property name"),
        (b"", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"9" * 5000, "is not JSON"),
        (b" " * (2**20 + 1), "has more than 1 MB"),
    ],
)
def test_contents_that_are_no_json(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=f"file.json {message}.*: expected a config$"):
        read_json(path, "a config", limit=2**20)


def test_the_missing_folders_and_the_nearest_existing_path(tmp_path: Path) -> None:
    inner = tmp_path / "a" / "b"
    assert paths.missing_folders(inner) == [inner, tmp_path / "a"]
    assert paths.nearest_existing(inner) == tmp_path
    inner.mkdir(parents=True)
    assert paths.missing_folders(inner) == []
    assert paths.nearest_existing(inner) == inner
    (tmp_path / "file").touch()
    assert paths.nearest_existing(tmp_path / "file" / "below") == tmp_path / "file"
