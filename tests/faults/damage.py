"""Damaged files for the tests of faults, and a child process with little memory and time."""

import os
import pickle
import random
import resource
import shutil
import signal
import traceback
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def _wav(path: Path) -> None:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(bytes(range(256)) * 20)


def _cut(path: Path, size: Callable[[int], int]) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: size(len(content))])


def _replaced(path: Path, make: Callable[[Path], object]) -> None:
    path.unlink()
    make(path)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "empty": lambda path: path.write_bytes(b""),
    "one byte": lambda path: _cut(path, lambda size: 1),
    "half": lambda path: _cut(path, lambda size: size // 2),
    "end missing": lambda path: _cut(path, lambda size: size - 3),
    "text": lambda path: path.write_text("hello, this is text\n" * 20),
    "markdown": lambda path: path.write_text("# A checkpoint\n\nIt was trained for 3 days.\n"),
    "latin-1": lambda path: path.write_bytes("größer".encode("latin-1") * 30),
    "wav": _wav,
    "zeros": lambda path: path.write_bytes(bytes(5000)),
    "random bytes": lambda path: path.write_bytes(random.Random(0).randbytes(5000)),
    "deep JSON": lambda path: path.write_text('{"a":' * 100_000),
    "a list": lambda path: path.write_text("[1, 2]"),
    "pickle without end": lambda path: path.write_bytes(b"\x80\x02}q\x00X\xff\xff\xff\x7f"),
    "missing": lambda path: path.unlink(),
    "a folder": lambda path: _replaced(path, Path.mkdir),
    "a FIFO": lambda path: _replaced(path, os.mkfifo),
    "a loop of links": lambda path: _replaced(path, lambda link: link.symlink_to(link)),
    "a link to nothing": lambda path: _replaced(path, lambda link: link.symlink_to("nothing")),
    "a device": lambda path: _replaced(path, lambda link: link.symlink_to("/dev/zero")),
}
"""Kind of damage -> function that damages a file."""


def flips(content: bytes, positions: int, first: int = 0, last: int | None = None, seed: int = 0) -> Iterator[bytes]:
    """Yield the content with one flipped bit, for random positions from ``first`` to ``last``."""
    chosen = random.Random(seed)
    for _ in range(positions):
        position = chosen.randrange(first, len(content) if last is None else last)
        changed = bytearray(content)
        changed[position] ^= 1 << chosen.randrange(8)
        yield bytes(changed)


def restore(folder: Path, good: Path) -> None:
    """Replace a folder by a copy of ``good``."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(good, folder)


def in_child(function: Callable[[], Any], memory: int = 1 << 30, seconds: int = 60) -> Any:
    """Return the result of a function in a forked process, which may allocate ``memory`` more bytes.

    Raises:
        AssertionError: the function raised an exception, or the process was ended by a signal or for its time.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            import torch

            torch.set_num_threads(1)  # the threads of the parent do not exist here
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            limit = pages * resource.getpagesize() + memory
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
            signal.alarm(seconds)
            result = True, function()
        except BaseException:
            result = False, traceback.format_exc()
        with os.fdopen(writing, "wb") as file:
            file.write(pickle.dumps(result))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        content = file.read()
    _, status = os.waitpid(child, 0)
    assert content, f"the process was ended by the signal {os.WTERMSIG(status)}"
    succeeded, result = pickle.loads(content)
    assert succeeded, result
    return result
