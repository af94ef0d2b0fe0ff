"""Files and folders that are either complete or not there, whenever the process is killed or the disk is full."""

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from sashimi_diffusion.errors import UserError


def write_file(path: Path, content: bytes) -> None:
    """Write beside ``path``, wait for the disk, and rename over it."""
    beside = path.with_name(f".{path.name}.tmp")
    with beside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def sync_folder(path: Path) -> None:
    """Wait until renames inside the folder ``path`` are on the disk, where the system can say so."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def folder_written_beside(path: Path) -> Iterator[Path]:
    """An empty folder that becomes ``path`` when the block ends, replacing what was there; gone if the block fails."""
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
def writing(what: str, advice: str) -> Iterator[None]:
    """Turn a failure to write into one clear line.

    Raises:
        UserError: the disk is full, the folder is read-only, and the like.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
        reason = "the disk is full" if full else str(error)
        raise UserError(f"cannot write {what}: {reason}; {advice}") from error
