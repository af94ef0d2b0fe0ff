"""Text on the terminal: file names are escaped, and printing never ends a run."""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, TextIO

from tqdm import tqdm


def printable(text: object) -> str:
    r"""Return text in which control characters and undecodable bytes of file names are escaped, as ``\x1b``.

    Line breaks and tabulators are escaped as well, so the result is one line.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in str(text)
    )


def shortened(text: str, limit: int = 80) -> str:
    """Return text of at most ``limit`` characters: the middle of a longer one is replaced by its length."""
    if len(text) <= limit:
        return text
    omitted = f" ...({len(text):,} characters)... "
    kept = max(0, limit - len(omitted))
    return text[: kept - kept // 2] + omitted + text[len(text) - kept // 2 :]


def one_line(text: object, limit: int = 300) -> str:
    """Return text of any length and number of lines, such as that of an exception, as one printable line.

    Args:
        text: the text; an exception without one becomes the name of its class.
        limit: maximum number of characters.
    """
    words = " ".join(str(text).split())
    if not words and isinstance(text, BaseException):
        words = type(text).__name__
    return shortened(printable(words), limit)


def first_line(error: BaseException) -> str:
    """Return the first line of the message of an exception; in PyTorch's messages, traces and advice follow it."""
    return one_line(str(error).strip().partition("\n")[0] or type(error).__name__)


def listed(names: Sequence[object], limit: int) -> str:
    """Return the first ``limit`` names, escaped and separated by commas; ", ..." stands for the others."""
    return ", ".join(map(printable, names[:limit])) + (", ..." if len(names) > limit else "")


def counted(number: int, noun: str) -> str:
    """Return a number with its noun, which gets an "s" unless the number is 1."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def say(text: str = "", stream: TextIO | None = None) -> None:
    """Print text and a line break; progress bars are drawn again below it.

    Characters that the encoding of the stream lacks are escaped. If nobody reads the stream any more (a closed pipe) or
    its disk is full, the text and all later text is discarded.

    Args:
        text: one or more lines; pass names of files through :func:`printable` first.
        stream: default ``sys.stdout``.
    """
    stream = stream or sys.stdout
    if stream is None:  # the program was started with a closed descriptor
        return
    try:
        with tqdm.external_write_mode(file=stream):
            stream.write(_encodable(text, stream) + "\n")
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


def close_progress_bars() -> None:
    """Close all open progress bars, for example after an error, so that the next text begins on a new line."""
    for bar in list(getattr(tqdm, "_instances", ())):
        with contextlib.suppress(OSError, ValueError):
            bar.close()


@contextlib.contextmanager
def unfailing_output() -> Iterator[None]:
    """Let everything in the block print as :func:`say` does: ``print``, progress bars, warnings, other packages."""
    before = sys.stdout, sys.stderr
    with contextlib.ExitStack() as stack:
        if None in before:
            null = stack.enter_context(open(os.devnull, "w"))
        streams: Any = [null if stream is None else _UnfailingStream(stream) for stream in before]
        sys.stdout, sys.stderr = streams
        try:
            yield
        finally:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            sys.stdout, sys.stderr = before


class _UnfailingStream:
    """A text stream. Its methods ``write`` and ``flush`` raise no error; text that cannot be written is discarded."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text and return its length."""
        try:
            self._stream.write(_encodable(text, self._stream))
        except (OSError, ValueError):
            discard(self._stream)
        return len(text)

    def flush(self) -> None:
        """Write the buffer of the stream."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            discard(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _encodable(text: str, stream: TextIO) -> str:
    """Return text in which characters that the encoding of the stream lacks are escaped."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)
