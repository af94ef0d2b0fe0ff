"""Write files and folders that are either complete or absent, even if the process is killed or the disk is full."""

import contextlib
import errno
import os
import shutil
import stat
import time
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.terminal import one_line, printable

LONGEST_PART = 60
"""Bytes of a label in a file name, which has at most 255 bytes."""
_ABANDONED_SECONDS = 6 * 3600
_FULL = "the disk is full"


@contextlib.contextmanager
def file_written_beside(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary file that replaces ``path`` when the block ends; if the block fails, ``path`` is unchanged.

    Several processes may write the same path at once: readers see one complete version.
    """
    # The name of the file may already be as long as the file system allows.
    temporary = path.with_name(f".{path.name[:40]}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_file(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, replacing what was there."""
    with file_written_beside(path) as file:
        file.write(content)


@contextlib.contextmanager
def folder_written_beside(path: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces ``path`` when the block ends; if the block fails, ``path`` is unchanged.

    Only one process may write ``path`` at a time; see :func:`folder_written_once`.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with _removed_on_failure(temporary):
        yield temporary
        give_usual_rights(temporary)
        sync_folder(temporary)
        if path.exists():
            old = path.with_name(f".{path.name}.old.tmp")
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
            temporary.rename(path)
            shutil.rmtree(old)
        else:
            temporary.rename(path)
        sync_folder(path.parent)


@contextlib.contextmanager
def folder_written_once(path: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes ``path`` when the block ends, unless another process created it first.

    Several processes may write the same content to ``path`` at once: the first to finish wins, the others discard
    their folders. A folder that exists is never replaced, so readers may keep its files open.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    with _removed_on_failure(temporary):
        yield temporary
        give_usual_rights(temporary)
        sync_folder(temporary)
        try:
            temporary.rename(path)
        except OSError:
            if not path.is_dir():
                raise
            shutil.rmtree(temporary)
        sync_folder(path.parent)


@contextlib.contextmanager
def files_written_beside(path: Path) -> Iterator[Path]:
    """Yield an empty folder; when the block ends, each of its files replaces the one of the same name in ``path``.

    Each file is replaced in one operation, and the other files of ``path`` stay. If the block fails, ``path`` is
    unchanged. Only one process may write ``path`` at a time.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with _removed_on_failure(temporary):
        yield temporary
        give_usual_rights(temporary)
        files = [file for file in temporary.rglob("*") if file.is_file()]
        for file in files:
            with file.open("rb+") as written:
                os.fsync(written.fileno())
        for file in files:
            target = path / file.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
        shutil.rmtree(temporary)


def name_of(label: str) -> str:
    """Return a label as a part of a file name: its first :data:`LONGEST_PART` bytes, without half a character."""
    return label.encode("utf-8", "replace")[:LONGEST_PART].decode("utf-8", "ignore")


def give_usual_rights(folder: Path, pattern: str = "**/*") -> None:
    """Give files in a folder the rights that ``open`` gives a new file, in addition to theirs.

    safetensors writes files that only their owner can read, whatever the umask is.

    Args:
        folder: the folder.
        pattern: the files, as in ``Path.glob``; all files in the folder and its subfolders by default.
    """
    probe = folder / f".{uuid.uuid4().hex}.tmp"
    descriptor = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    usual = stat.S_IMODE(os.fstat(descriptor).st_mode)
    os.close(descriptor)
    probe.unlink()
    for path in folder.glob(pattern):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode) and stat.S_IMODE(mode) | usual != stat.S_IMODE(mode):
            path.chmod(stat.S_IMODE(mode) | usual)


@contextlib.contextmanager
def _removed_on_failure(temporary: Path) -> Iterator[None]:
    """Create ``temporary`` as an empty folder, and remove it if the block fails."""
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def remove_empty_folders(folders: Iterable[Path]) -> None:
    """Remove those of the folders that are empty, in this order."""
    for folder in folders:
        with contextlib.suppress(OSError):  # something has been written into it
            folder.rmdir()


def remove_folder(path: Path) -> None:
    """Remove a folder so that it is never seen half removed, even if the process is killed."""
    hidden = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    path.rename(hidden)
    shutil.rmtree(hidden)


def remove_abandoned(folder: Path) -> None:
    """Delete temporary files and folders in ``folder`` that nobody has changed for six hours.

    Processes that were killed leave them behind.
    """
    for path in folder.glob(".*.tmp"):
        try:
            newest = max(entry.stat().st_mtime for entry in [path, *path.rglob("*")])
        except FileNotFoundError:  # the process that writes it has just finished
            continue
        if time.time() - newest < _ABANDONED_SECONDS:
            continue
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def sync_folder(path: Path) -> None:
    """Wait until renames inside the folder ``path`` are on the disk, where the system supports it."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def writing(what: str, advice: str | None = None) -> Iterator[None]:
    """Turn a failure to write into a UserError of one line.

    Args:
        what: completes the message "cannot write …", for example "the checkpoint" or "to samples".
        advice: what the user can do about it; None: choose another place, or free some space if the disk is full.

    Raises:
        UserError: the disk is full, or the place does not exist or is read-only.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = _FULL if _is_full(error) else _reason(error, what)
        usual = "choose another place" if reason != _FULL else "free some space or choose another place"
        raise UserError(f"cannot write {what}: {reason}; {advice or usual}") from error


def _is_full(error: OSError | SafetensorError) -> bool:
    return getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)


def _reason(error: OSError | SafetensorError, what: str) -> str:
    if not isinstance(error, OSError) or error.strerror is None:
        return one_line(error)
    if error.errno == errno.EEXIST and os.path.islink(error.filename or ""):  # in the place of a folder to create
        return "something that is no folder, such as a broken link, is in its place"
    already_named = error.filename is None or printable(error.filename) in what
    return error.strerror if already_named else f"{error.strerror} ({printable(error.filename)})"
