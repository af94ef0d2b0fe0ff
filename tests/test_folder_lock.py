"""Tests of the lock on a folder: one process at a time, released by the system, honest where there are no locks."""

import errno
import os
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from sashimi_diffusion import folder_lock
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.folder_lock import folder_locked

fcntl = pytest.importorskip("fcntl", reason="needs the locks of POSIX systems")


@pytest.fixture
def held(tmp_path: Path) -> Callable[[Path], int]:
    """Return a function that starts a process which locks a folder and waits, and returns its process ID."""
    children: list[int] = []

    def hold(folder: Path) -> int:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            with folder_locked(folder, "the run folder"):
                os.write(writing, b"x")
                signal.pause()
            os._exit(0)
        children.append(child)
        assert os.read(reading, 1) == b"x"
        return child

    yield hold
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def end(child: int, how: signal.Signals) -> None:
    os.kill(child, how)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)


def test_the_second_process_is_refused_until_the_first_is_killed(held: Callable[[Path], int], tmp_path: Path) -> None:
    child = held(tmp_path / "run")
    expected = (
        rf"{re.escape(str(tmp_path / 'run'))} is in use by process {child} on {re.escape(socket.gethostname())} since "
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC: wait, stop it, or choose another output_dir"
    )
    for _ in range(2):
        with pytest.raises(UserError, match=expected), folder_locked(tmp_path / "run", "the run folder"):
            pass
    end(child, signal.SIGKILL)
    assert (tmp_path / "run" / folder_lock.NAME).exists()
    with folder_locked(tmp_path / "run", "the run folder"):
        assert f"process {os.getpid()} on " in (tmp_path / "run" / folder_lock.NAME).read_text()
    assert not (tmp_path / "run" / folder_lock.NAME).exists()


def test_two_locks_in_one_process(tmp_path: Path) -> None:
    with (
        folder_locked(tmp_path, "the run folder"),
        pytest.raises(UserError, match=f"in use by process {os.getpid()} "),
        folder_locked(tmp_path, "the run folder"),
    ):
        pass


def test_folders_that_stay_empty_are_removed(tmp_path: Path) -> None:
    with folder_locked(tmp_path / "a" / "b", "the run folder"):
        pass
    assert list(tmp_path.iterdir()) == []
    with folder_locked(tmp_path / "a" / "b", "the run folder"):
        (tmp_path / "a" / "b" / "file").touch()
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["file"]


def test_a_lock_file_that_was_deleted_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process opens the file, and then its holder deletes it: the lock on a deleted file is worth nothing."""
    original, files = folder_lock._lock, []

    def lock(file) -> None:
        original(file)
        files.append(file)
        if len(files) == 1:
            (tmp_path / folder_lock.NAME).unlink()

    monkeypatch.setattr(folder_lock, "_lock", lock)
    with folder_locked(tmp_path, "the run folder"):
        assert len(files) == 2
        assert os.path.samestat(os.fstat(files[1].fileno()), (tmp_path / folder_lock.NAME).stat())


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], number: int
) -> None:
    def flock(*_) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    done = []
    with folder_locked(tmp_path / "run", "the run folder"):
        done.append(1)
    assert done
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert f"the file system of {tmp_path / 'run'} has no locks ({os.strerror(number)}): make sure that no other" in err


def test_a_link_in_the_place_of_the_lock_file(tmp_path: Path) -> None:
    (tmp_path / "other").write_text("kept")
    (tmp_path / folder_lock.NAME).symlink_to(tmp_path / "other")
    with pytest.raises(UserError, match="cannot write the run folder: "), folder_locked(tmp_path, "the run folder"):
        pass
    assert (tmp_path / "other").read_text() == "kept"


def test_places_that_cannot_be_folders(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / ("x" * 300), tmp_path / "a\0b"):
        with (
            pytest.raises(UserError, match=r"cannot (write the run folder|use )|is a file, not a"),
            folder_locked(place, "the run folder"),
        ):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
