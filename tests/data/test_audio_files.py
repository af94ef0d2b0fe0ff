"""Tests of finding audio files: regular files, each once, and everything that stands in the way by name."""

import os
import warnings
from pathlib import Path

import pytest

from sashimi_diffusion.data.audio_files import find_audio
from sashimi_diffusion.errors import UserError

pytestmark = pytest.mark.skipif(os.name != "posix", reason="links and special files of POSIX systems")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a folder with b/1.wav and 2.flac."""
    folder = tmp_path / "audio"
    (folder / "b").mkdir(parents=True)
    for name in ("b/1.wav", "2.flac"):
        (folder / name).write_bytes(b"x")
    return folder


def names(root: Path) -> list[str]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        files, unusable = find_audio(root)
    assert not unusable
    return [path.relative_to(root).as_posix() for path in files]


def test_files_are_found_by_their_endings_in_the_order_of_their_paths(root: Path):
    for name in ("b/0.MP3", "a.txt", ".hidden.wav", "10.ogg"):
        (root / name).write_bytes(b"x")
    (root / ".git").mkdir()
    (root / ".git" / "3.wav").write_bytes(b"x")
    assert names(root) == ["10.ogg", "2.flac", "b/0.MP3", "b/1.wav"]


def test_a_loop_of_links_repeats_nothing(root: Path):
    (root / "b" / "loop").symlink_to(root)
    (root / "b" / "again").symlink_to(root / "b")
    assert names(root) == ["2.flac", "b/1.wav"]


def test_links_to_folders_and_files_outside_are_followed(root: Path, tmp_path: Path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "3.wav").write_bytes(b"x")
    (tmp_path / "4.wav").write_bytes(b"x")
    (root / "a").symlink_to(tmp_path / "other")
    (root / "c.wav").symlink_to(tmp_path / "4.wav")
    assert names(root) == ["2.flac", "a/3.wav", "b/1.wav", "c.wav"]


def test_a_file_with_several_paths_is_used_once_and_the_others_are_named(root: Path):
    (root / "a.wav").symlink_to(root / "b" / "1.wav")  # the path without a link is used, although it comes later
    (root / "z.flac").hardlink_to(root / "2.flac")
    with pytest.warns(UserWarning, match=r"2 audio files in .* are left out, because .* same files: z\.flac, a\.wav"):
        files, unusable = find_audio(root)
    assert [path.relative_to(root).as_posix() for path in files] == ["2.flac", "b/1.wav"]
    assert not unusable


def test_everything_else_is_named(root: Path):
    os.mkfifo(root / "fifo.wav")
    (root / "device.wav").symlink_to("/dev/zero")
    (root / "endless.wav").symlink_to(root / "endless.wav")
    (root / "broken.wav").symlink_to(root / "gone.wav")
    (root / "endless").symlink_to(root / "endless")
    files, unusable = find_audio(root)
    assert len(files) == 2
    assert {path.name: reason for path, reason in unusable.items()} == {
        "fifo.wav": "a FIFO, not a regular file",
        "device.wav": "a device, not a regular file",
        "endless.wav": "unreadable (Too many levels of symbolic links)",
        "broken.wav": "unreadable (No such file or directory)",
        "endless": "unreadable (Too many levels of symbolic links)",
    }


def test_a_folder_that_cannot_be_read_is_named(root: Path, monkeypatch: pytest.MonkeyPatch):
    real = os.scandir

    def refuse(folder: Path):
        if Path(folder).name == "b":
            raise PermissionError(13, "Permission denied", str(folder))
        return real(folder)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read every folder
    files, unusable = find_audio(root)
    assert [path.name for path in files] == ["2.flac"]
    assert unusable == {root / "b": "unreadable folder (Permission denied)"}


def test_a_folder_without_audio_is_refused(tmp_path: Path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(UserError, match=r"no audio in .*: expected files ending in \.wav"):
        find_audio(tmp_path)
