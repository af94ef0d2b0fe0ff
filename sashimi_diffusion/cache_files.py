"""The folder of all caches, and files in it that end with a checksum, so that damage is found before they are used."""

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.files import write_file
from sashimi_diffusion.paths import expanded, is_file, reason, status
from sashimi_diffusion.terminal import printable, say


class DamagedCacheError(ValueError):
    """Error for a part of a cache that is not what was written; the text is the reason, without the path."""


def cache_folder(chosen: Path | str | None) -> Path:
    """Return the folder that the user has chosen for a cache, with ``~`` expanded, or :func:`default_cache_dir`."""
    return default_cache_dir() if chosen is None else expanded(chosen)


def default_cache_dir() -> Path:
    """Return the folder of all caches.

    It is ``$SASHIMI_CACHE`` if this variable is set, otherwise ``$XDG_CACHE_HOME/sashimi-diffusion`` if that variable
    is set, otherwise ``~/.cache/sashimi-diffusion``.

    Raises:
        UserError: see :func:`sashimi_diffusion.paths.expanded`.
    """
    user_cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return expanded(os.environ.get("SASHIMI_CACHE") or Path(user_cache, "sashimi-diffusion"))


def write_cache_file(path: Path, content: bytes) -> None:
    """Write ``content`` and a line with its checksum to ``path``, replacing what was there.

    Raises:
        OSError: the file cannot be written.
    """
    write_file(path, content + _checksum(path, content))


def read_cache_file(path: Path) -> bytes | None:
    """Return what :func:`write_cache_file` wrote, or None if the file does not exist.

    Raises:
        DamagedCacheError: the file was changed, belongs under another name, or cannot be read.
    """
    try:
        if not is_file(path):
            if status(path) is None:
                return None
            raise DamagedCacheError(f"{path.name} is no regular file")
        written = path.read_bytes()
    except (OSError, UserError) as error:
        raise DamagedCacheError(f"{path.name} cannot be read: {reason(error)}") from error
    content = written[: -len(_checksum(path, b""))]
    if written != content + _checksum(path, content):
        raise DamagedCacheError(f"the checksum of {path.name} is wrong")
    return content


def write_cache_record(path: Path, record: Any) -> None:
    """Write a record that JSON can express; see :func:`write_cache_file`."""
    write_cache_file(path, json.dumps(record).encode())


def read_cache_record(path: Path) -> Any:
    """Return the record that :func:`write_cache_record` wrote, or None if the file does not exist.

    Raises:
        DamagedCacheError: see :func:`read_cache_file`; or the content is no JSON.
    """
    content = read_cache_file(path)
    try:
        return None if content is None else json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DamagedCacheError(f"{path.name} is not JSON ({printable(error)})") from error


def read_undamaged_record(path: Path, consequence: str) -> Any:
    """Return the record of :func:`read_cache_record`; None, with a line on stderr, if it is damaged.

    Args:
        path: the file.
        consequence: what replaces a damaged record, for the line.
    """
    try:
        return read_cache_record(path)
    except DamagedCacheError as error:
        say_damaged(path, error, consequence)
        return None


def say_damaged(path: Path, problem: object, consequence: str) -> None:
    """Print one line on stderr about a damaged part of a cache, and what replaces it."""
    say(f"note: {printable(path)} in the cache is damaged ({problem}); {consequence}", sys.stderr)


def _checksum(path: Path, content: bytes) -> bytes:
    """Return the line after the content; it depends on the name of the file, which tells what the content is for."""
    digest = hashlib.sha256(os.fsencode(path.name) + b"\0" + content).hexdigest()
    return f"\n{digest[:32]}\n".encode()
