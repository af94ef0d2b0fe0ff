"""Damaged files for the tests of faults."""

import os
import random
import shutil
import wave
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np


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


def _flipped(place: float) -> Callable[[bytes], bytes]:
    """Return a function that flips a bit of the byte at this fraction of a file."""

    def flip(content: bytes) -> bytes:
        position = round(place * (len(content) - 1))
        return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]

    return flip


CHANGES: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda content: b"",
    "cut by two bytes": lambda content: content[:-2],
    "cut to a half": lambda content: content[: len(content) // 2],
    "zeroed": lambda content: bytes(len(content)),
    "zeroed at the end": lambda content: content[: len(content) // 2] + bytes(len(content) - len(content) // 2),
    "not a number": lambda content: np.full(-(-len(content) // 4), np.nan, "<f4").tobytes()[: len(content)],
    "longer": lambda content: content + b"\0\0\0\0",
    "repeated": lambda content: content + content,
    "reversed": lambda content: content[::-1],
    "other text": lambda content: b"[" * 100_000,
    **{f"flipped at {place}": _flipped(place) for place in (0.0, 0.1, 0.35, 0.5, 0.75, 0.98, 1.0)},
}
"""Kind of damage -> function that returns the changed content of a file."""


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
