"""Fingerprints of files: a hash of the content of each, which is computed again only if the file has changed."""

import hashlib
import os
import stat
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sashimi_diffusion.cache_files import DamagedCacheError, read_cache_record, say_damaged, write_cache_record
from sashimi_diffusion.paths import reason

_FORMAT = 2  # version of the stored fingerprints
_SETTLED_NS = 2 * 10**9
_TYPES = (int, int, int, str)  # of an entry: size, time of the last change of content, of any change, and the hash


def file_fingerprints(files: Sequence[Path], cache: Path) -> list[str]:
    """Return a hash of the content of each file, in the order of ``files``.

    The hashes are stored in ``cache``. A file is read again only if its size or a time stamp has changed. For a file
    that cannot be read, the result is the reason instead of a hash.

    Args:
        files: the files.
        cache: an existing folder.

    Raises:
        OSError: the hashes cannot be stored.
    """
    names = "\n".join(["", *(str(path.absolute()) for path in files)])
    key = hashlib.sha256(str(_FORMAT).encode() + os.fsencode(names)).hexdigest()[:32]
    memo_path = cache / f"{key}.fingerprints.json"
    memo = _read(memo_path, len(files))
    progress = tqdm(files, desc="Checking audio files", unit="file", delay=2)
    before: Sequence[list[Any] | None] = [None] * len(files) if memo is None else memo
    entries = [_fingerprint(path, entry) for path, entry in zip(progress, before, strict=True)]
    if entries != memo:
        write_cache_record(memo_path, entries)
    return [entry[-1] for entry in entries]


def is_settled(status: os.stat_result) -> bool:
    """Return whether every later change of a file will give it a new time stamp.

    A file that was changed in the last two seconds may change again without a new one, because some file systems round
    time stamps.
    """
    return time.time_ns() - status.st_mtime_ns > _SETTLED_NS


def _read(path: Path, files: int) -> list[list[Any]] | None:
    """Return the stored entries; None if there are none or, with a note, if they are damaged."""
    try:
        entries = read_cache_record(path)
        if entries is not None and not _is_valid(entries, files):
            raise DamagedCacheError(f"{path.name} has no list of {files} fingerprints")
    except DamagedCacheError as error:
        say_damaged(path, error, "the files are read again")
        return None
    return entries


def _is_valid(entries: Any, files: int) -> bool:
    return (
        isinstance(entries, list)
        and len(entries) == files
        and all(isinstance(entry, list) and tuple(map(type, entry)) == _TYPES for entry in entries)
    )


def _fingerprint(path: Path, before: list[Any] | None) -> list[Any]:
    """Return [size, time stamp of the content, time stamp of the file, hash].

    The time stamp of the content is 0, which matches no file, if the file was changed so recently that it may change
    again without a new time stamp.

    Args:
        path: the file.
        before: an earlier result, or None.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a FIFO would wait for a writer
            return [0, 0, 0, "unreadable: no regular file"]
        settled = is_settled(status)  # before the file is read, which may take long
        # The second time stamp also changes if a tool replaces the content and restores the first.
        stamps = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
        if before is not None and before[:3] == stamps:
            return before
        digest = hashlib.blake2b(digest_size=16)
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        return [0, 0, 0, f"unreadable: {reason(error)}"]
    return [*(stamps if settled else [status.st_size, 0, 0]), digest.hexdigest()]
