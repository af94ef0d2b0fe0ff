"""Text on the terminal: file names are escaped, and printing never ends a run."""

import contextlib
import os
import sys
from typing import TextIO


def printable(text: object) -> str:
    r"""Return text in which control characters and undecodable bytes of file names are escaped, as ``\x1b``.

    Line breaks and tabulators are escaped as well, so the result is one line.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in str(text)
    )


def say(text: str = "", stream: TextIO | None = None) -> None:
    """Print text and a line break.

    Characters that the encoding of the stream lacks are escaped. If nobody reads the stream any more (a closed pipe) or
    its disk is full, the text and all later text is discarded.

    Args:
        text: one or more lines; pass names of files through :func:`printable` first.
        stream: default ``sys.stdout``.
    """
    stream = stream or sys.stdout
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
        stream.flush()
    except (OSError, ValueError):  # ValueError: the stream is closed
        discard(stream)


def discard(stream: TextIO) -> None:
    """Discard what is written to the stream from now on, including what it has in its buffer."""
    # Python flushes the standard streams at exit, and would report the closed pipe once more.
    with contextlib.suppress(OSError, ValueError):
        descriptor = stream.fileno()
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, descriptor)
        os.close(null)


def supports(text: str, stream: TextIO | None = None) -> bool:
    """Return whether the encoding of the stream (default ``sys.stdout``) has all characters of ``text``."""
    encoding = getattr(stream or sys.stdout, "encoding", None) or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True
