"""The rows of the command zoo: a command line, and what it must do.

The other files named ``command_zoo_…`` list the rows of one command each.
"""

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from tests.faults.forked import Call

LONG = "n" * 300
"""A name that no file can have."""
UNDECODABLE = "caf\udce9"
"""The name of a file that is not UTF-8 (its last byte is é in Latin-1), as Python represents it."""
ESCAPE = "\x1b[2Jred"
"""A name that clears the terminal that shows it."""
BEYOND = "9" * 5000
"""More digits than Python converts to a whole number."""

NOT_WHOLE = ("", "x", "1.5", "1e3", "nan", "inf", "0x10", BEYOND)
NOT_A_NUMBER = ("", "x", "1,5", "nan", "inf", "-inf", "1e400")

MISSING = {
    "nowhere": "nowhere",
    "dangling": "dangling",
    "notes.txt/below": "notes.txt",
    f"{UNDECODABLE}-nowhere": "caf\\udce9-nowhere",
    f"{ESCAPE}-nowhere": "\\x1b[2Jred-nowhere",
    "two\nlines": "two\\nlines",
}
"""Paths at which there is nothing -> how a message shows them."""

UNUSABLE = MISSING | {
    "": "",
    "loop": "loop",
    LONG: "n" * 250,
    "secret/below": "secret/below",
}
"""Paths that are neither a file nor a folder."""

NO_FILE = UNUSABLE | {"full": "full", ".": "", "fifo": "fifo", "zero": "zero", "secret.txt": "secret.txt"}
"""Paths that cannot be read as a file."""

NO_FOLDER = UNUSABLE | {
    "notes.txt": "notes.txt",
    "fifo": "fifo",
    "null": "null",
    "empty": "empty",
    "secret": "secret",
}
"""Paths that cannot be read as a folder with something in it."""

NO_OUTPUT_FOLDER = {
    "": "",
    "notes.txt": "notes.txt",
    "notes.txt/below": "notes.txt",
    "loop": "loop",
    LONG: "n" * 250,
    "fifo": "fifo",
    "null": "null",
    "readonly/new": "readonly",
    "secret/new": "secret",
}
"""Paths at which no folder can be made or written."""

NO_OUTPUT_FILE = {
    "": "",
    "full": "full",
    "notes.txt/below": "notes.txt",
    "loop": "loop",
    LONG: "n" * 250,
    "readonly/new": "readonly",
    "secret/new": "secret",
}
"""Paths to which no file can be written."""

NO_DEVICE = ("", "x", "cuda", "cuda:99", "cuda:-1", "cuda:x", "hpu", "mps", "xla", "meta", "vulkan", "cpu:", ESCAPE)
"""Values of --device that cannot be used without a GPU."""


@dataclass(frozen=True)
class Row:
    """A command line and what it must do.

    Args:
        call: the command line.
        says: text in the line of the error, or in the output of a call that is right.
        code: exit code.
        writes: paths that a right call must create; with all that is in them, it creates nothing else.
        replaces: paths that it may replace, with all that is in them.
        slow: whether only `make test-slow` runs it.
    """

    call: Call
    says: str = ""
    code: int = 2
    writes: tuple[str, ...] = ()
    replaces: tuple[str, ...] = ()
    slow: bool = False

    @property
    def id(self) -> str:
        """Name of the test."""
        shown = [argument if len(argument) < 40 else f"{argument[:36]}..." for argument in self.call.arguments]
        extra = ("" if self.call.reader else " |") + ("" if self.call.encoding == "utf-8" else f" {self.call.encoding}")
        line = f"{self.call.command} {shlex.join(shown)}{extra}"
        return line.encode("unicode_escape", "surrogatepass").decode("ascii")


def wrong(command: str, line: str | Sequence[str], says: str = "", **options: object) -> Row:
    """Return the row of a wrong call: one line that contains ``says``, exit code 2, nothing written.

    Args:
        command: the command.
        line: its arguments, as text for a shell or as a list.
        says: text in the line of the error.
        **options: fields of ``Call``.
    """
    arguments = shlex.split(line) if isinstance(line, str) else line
    return Row(Call(command, tuple(arguments), **options), says)  # type: ignore[arg-type]


def right(command: str, line: str, says: str = "", writes: Sequence[str] = (), **options: object) -> Row:
    """Return the row of a right call, which writes the files or folders ``writes``."""
    return replace(wrong(command, line, says, **options), code=0, writes=tuple(writes))


def wrong_values(
    command: str,
    line: str,
    option: str,
    values: Sequence[str] | dict[str, str],
    says: str | None = None,
    quick: int = 2,
) -> Iterator[Row]:
    """Yield the rows of an option with wrong values.

    Args:
        command: the command.
        line: the other arguments.
        option: the option; "" for an argument without one.
        values: the values, or value -> text in the line of the error.
        says: text in the line of the error of all values; default: the option.
        quick: number of values, from the first, that are not slow.
    """
    for position, value in enumerate(values):
        shown = values[value] if isinstance(values, dict) else option if says is None else says
        arguments = [*shlex.split(line), *([f"{option}={value}"] if option else [value])]
        yield replace(wrong(command, arguments, shown), slow=position >= quick)


def every(step: int, rows: Iterable[Row]) -> Iterator[Row]:
    """Yield rows, of which all are slow except every ``step``-th."""
    for position, row in enumerate(rows):
        yield replace(row, slow=row.slow or position % step > 0)
