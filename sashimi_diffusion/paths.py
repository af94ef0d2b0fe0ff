"""Look at paths and read small files: every failure is an error of one line that names the path and the reason."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.terminal import printable

_KINDS = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}
_MEGABYTE = 1 << 20


def status(path: str | os.PathLike[str]) -> os.stat_result | None:
    """Return the status of a file or folder, following links; None if it does not exist.

    Raises:
        UserError: the path cannot be examined: a folder on it may not be entered, it is too long, it contains a null
            character, or its links form a loop.
    """
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise UserError(f"cannot use {printable(path)}: {reason(error)}") from error


def is_file(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a regular file. Raises UserError as :func:`status`."""
    found = status(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Return whether a path is a folder. Raises UserError as :func:`status`."""
    found = status(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def entries(path: str | os.PathLike[str]) -> list[Path]:
    """Return the paths in a folder in the order of their names; nothing if it is no folder.

    Raises:
        UserError: the folder may not be read.
    """
    if not is_folder(path):
        return []
    try:
        return sorted(Path(path).iterdir())
    except OSError as error:
        raise UserError(f"cannot read the folder {printable(path)}: {reason(error)}") from error


def missing_folders(path: Path) -> list[Path]:
    """Return the folders that must be created to have ``path``, the innermost first; nothing if it exists."""
    return [folder for folder in (path, *path.parents) if status(folder) is None]


def nearest_existing(path: Path) -> Path:
    """Return ``path`` if it exists, otherwise the innermost path above it that exists."""
    while status(path) is None:
        path = path.parent
    return path


def kind(found: os.stat_result) -> str:
    """Return what a status describes, in words, for example "a FIFO"."""
    return _KINDS.get(stat.S_IFMT(found.st_mode), "a file")


def expanded(path: Path | str) -> Path:
    """Return a path in which ``~`` is replaced by the home folder.

    Raises:
        UserError: it begins with the name of a user who does not exist, as in "~nobody/data".
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"cannot use {printable(path)}: {error}") from error


def reason(error: OSError | ValueError) -> str:
    """Return why a path cannot be used, in a few words without the path."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


def require_file(path: str | os.PathLike[str], what: str) -> os.stat_result:
    """Return the status of a regular file.

    Args:
        path: the file.
        what: what the file should be, for the error message, for example "a recording".

    Raises:
        UserError: the file does not exist, or is no regular file.
    """
    found = status(path)
    if found is None:
        raise UserError(f"{printable(path)} does not exist: expected {what}")
    if not stat.S_ISREG(found.st_mode):
        raise UserError(f"{printable(path)} is {kind(found)}: expected {what}")
    return found


def read_bytes(path: str | os.PathLike[str], what: str, limit: int = 64 * _MEGABYTE) -> bytes:
    """Return the content of a regular file.

    Args:
        path: the file.
        what: what the file should be, for the error message, for example "a config".
        limit: maximum size in bytes.

    Raises:
        UserError: the file does not exist, may not be read, is no regular file, or is larger than ``limit``.
    """
    require_file(path, what)
    try:
        with open(path, "rb") as file:
            content = b"".join(_blocks(file, limit + 1))
    except OSError as error:
        raise UserError(f"cannot read {printable(path)}: {reason(error)}") from error
    if len(content) > limit:
        raise UserError(f"{printable(path)} has more than {limit // _MEGABYTE} MB: expected {what}")
    return content


def _blocks(file: BinaryIO, limit: int) -> Iterator[bytes]:
    """Yield the first ``limit`` bytes of a file in blocks, because ``read(limit)`` allocates the whole limit."""
    while limit and (block := file.read(min(limit, _MEGABYTE))):
        limit -= len(block)
        yield block


def read_text(path: str | os.PathLike[str], what: str, limit: int = 64 * _MEGABYTE) -> str:
    """Return the content of a UTF-8 text file. Raises UserError as :func:`read_bytes`, and for other encodings."""
    try:
        return read_bytes(path, what, limit).decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{printable(path)} is not UTF-8 text: expected {what}") from error


def read_json(path: str | os.PathLike[str], what: str, limit: int = 64 * _MEGABYTE) -> Any:
    """Return the content of a JSON file. Raises UserError as :func:`read_text`, and if it is not JSON."""
    text = read_text(path, what, limit)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{printable(path)} is not JSON ({printable(error)}): expected {what}") from error
