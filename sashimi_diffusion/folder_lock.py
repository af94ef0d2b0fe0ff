"""A lock on a folder, so that only one process at a time writes there."""

import contextlib
import datetime
import errno
import os
import socket
import sys
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.files import remove_empty_folders, writing
from sashimi_diffusion.paths import is_folder, kind, missing_folders, read_text, status
from sashimi_diffusion.terminal import printable, say

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

NAME = ".lock"
"""Name of the lock file in the folder. It exists while the lock is held, and after a process was killed."""

_HELD = (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)
# A link in the place of the lock file is not followed.
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_FAR = 1 << 30
"""Position of the locked byte on Windows, where others cannot read locked bytes: behind the text of the file."""


@contextlib.contextmanager
def folder_locked(folder: Path, what: str) -> Iterator[None]:
    """Hold the lock of a folder during the block.

    The system releases the lock when the process ends, however it ends. If the file system has no locks, a line on
    stderr says so and the block runs without. The folder is created; if it is empty at the end, it is removed again.

    Args:
        folder: the folder.
        what: what the folder is, for error messages, for example "the run folder".

    Raises:
        UserError: another process holds the lock, or the folder is none or cannot be written.
    """
    found = status(folder)
    if found is not None and not is_folder(folder):
        raise UserError(f"{what} {printable(folder)} is {kind(found)}, not a folder: choose another output_dir")
    created = missing_folders(folder)
    with writing(what):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with _file_locked(folder, what):
            yield
    finally:
        remove_empty_folders(created)


@contextlib.contextmanager
def _file_locked(folder: Path, what: str) -> Iterator[None]:
    path = folder / NAME
    file = _locked_file(path, what)
    try:
        yield
    finally:
        if os.name == "nt":  # an open file cannot be deleted there
            file.close()
        with contextlib.suppress(OSError):  # another process has just locked it, or the disk is gone
            path.unlink()
        file.close()


def _locked_file(path: Path, what: str) -> FileIO:
    """Return the open lock file, locked and with the name of this process in it."""
    while True:
        with writing(what):
            file = os.fdopen(os.open(path, _FLAGS, 0o666), "rb+", buffering=0)
        try:
            _lock(file)
        except OSError as error:
            if error.errno in _HELD:
                file.close()
                raise UserError(
                    f"{printable(path.parent)} is in use by {_holder(path)}: wait, stop it, or choose another "
                    "output_dir"
                ) from None
            say(
                f"the file system of {printable(path.parent)} has no locks ({error.strerror}): make sure that no other "
                "process uses this folder",
                sys.stderr,
            )
            return file
        if _is_at(file, path):
            break
        file.close()  # the process that held the lock has deleted the file in between
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    with writing(what):
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {now}\n".encode())
    return file


def _lock(file: FileIO) -> None:
    """Lock a file without waiting; raise OSError if that is not possible."""
    if sys.platform == "win32":
        file.seek(_FAR)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def _is_at(file: FileIO, path: Path) -> bool:
    """Return whether an open file is the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    """Return the text of the lock file of another process."""
    try:
        return printable(read_text(path, "a lock file", limit=1000).strip()) or "another process"
    except UserError:  # it has been deleted in between, or it is not readable
        return "another process"
