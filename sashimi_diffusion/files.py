"""Write files and folders that are either complete or absent, even if the process is killed or the disk is full."""

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError

from sashimi_diffusion.errors import UserError


@contextlib.contextmanager
def file_written_beside(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary file that replaces ``path`` when the block ends; if the block fails, ``path`` is unchanged.

    Several processes may write the same path at once: readers see one complete version.
    """
    beside = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_file(path: Path, content: bytes) -> None:
    """Write ``content`` to ``path``, replacing what was there."""
    with file_written_beside(path) as file:
        file.write(content)


@contextlib.contextmanager
def folder_written_beside(path: Path) -> Iterator[Path]:
    """Yield an empty folder that replaces ``path`` when the block ends; if the block fails, ``path`` is unchanged."""
    beside = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        sync_folder(beside)
        if path.exists():
            old = path.with_name(f".{path.name}.old.tmp")
            shutil.rmtree(old, ignore_errors=True)
            path.rename(old)
            beside.rename(path)
            shutil.rmtree(old)
        else:
            beside.rename(path)
        sync_folder(path.parent)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


@contextlib.contextmanager
def files_written_beside(path: Path) -> Iterator[Path]:
    """Yield an empty folder; when the block ends, each of its files replaces the one of the same name in ``path``.

    Each file is replaced in one operation, and the other files of ``path`` stay. If the block fails, ``path`` is
    unchanged.
    """
    beside = path.with_name(f".{path.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        yield beside
        files = [file for file in beside.rglob("*") if file.is_file()]
        for file in files:
            with file.open("rb+") as written:
                os.fsync(written.fileno())
        for file in files:
            target = path / file.relative_to(beside)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def sync_folder(path: Path) -> None:
    """Wait until renames inside the folder ``path`` are on the disk, where the system supports it."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def writing(what: str, advice: str) -> Iterator[None]:
    """Turn a failure to write into a UserError of one line.

    Args:
        what: the subject of the message, for example "the checkpoint" or "to samples".
        advice: what the user can do about it.

    Raises:
        UserError: the disk is full, the folder is read-only or missing.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot write {what}: {_reason(error)}; {advice}") from error


def _reason(error: OSError | SafetensorError) -> str:
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    return "the disk is full" if full else str(error)
