"""Tests of printing: escaped text, closed pipes, full disks, narrow encodings, and progress bars."""

import io
import os
import sys
from collections.abc import Iterator

import pytest
from tqdm import tqdm

from sashimi_diffusion import terminal
from sashimi_diffusion.terminal import (
    close_progress_bars,
    first_line,
    listed,
    one_line,
    printable,
    say,
    shortened,
    supports,
    unfailing_output,
)


class ClosedPipe(io.TextIOBase):
    """A stream that nobody reads."""

    encoding = "utf-8"
    writes = 0

    def write(self, text: str) -> int:
        self.writes += 1
        raise BrokenPipeError(32, "Broken pipe")

    def flush(self) -> None:
        raise BrokenPipeError(32, "Broken pipe")


def narrow(encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")


@pytest.fixture
def standard(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Yield a monkeypatch for the standard streams, which are restored before pytest reports the test."""
    with monkeypatch.context() as patch:
        yield patch


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain ä 音", "plain ä 音"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        (os.fsdecode(b"\xff.wav"), r"\udcff.wav"),
        ("\u202e\u2028", r"\u202e\u2028"),
        (3, "3"),
    ],
)
def test_text_is_one_printable_line(text: object, expected: str) -> None:
    assert printable(text) == expected
    assert printable(printable(text)) == expected


def test_long_text_loses_its_middle() -> None:
    assert shortened("0" * 80) == "0" * 80
    short = shortened("a" + "0" * 4998 + "b")
    assert len(short) == 80
    assert short.startswith("a0")
    assert short.endswith("0b")
    assert "(5,000 characters)" in short


def test_text_of_several_lines_becomes_one_of_limited_length() -> None:
    assert one_line("a\n  b\t\x1b[2J") == r"a b \x1b[2J"
    assert one_line("") == ""
    assert one_line(ValueError()) == "ValueError"
    assert len(one_line("word " * 1000, 100)) == 100
    assert first_line(RuntimeError("\nno such device\nCUDA kernel errors might be reported later")) == "no such device"
    assert first_line(AssertionError()) == "AssertionError"


def test_long_lists_are_cut() -> None:
    assert listed(["a", "b\n"], 2) == r"a, b\n"
    assert listed([1, 2, 3], 2) == "1, 2, ..."
    assert listed([], 2) == ""


@pytest.mark.parametrize(("encoding", "arrow"), [("ascii", r"\u2193"), ("latin-1", r"\u2193"), ("utf-8", "↓")])
def test_characters_outside_of_the_encoding_are_escaped(encoding: str, arrow: str) -> None:
    stream = narrow(encoding)
    say("less is better ↓", stream)
    assert stream.buffer.getvalue().decode(encoding) == f"less is better {arrow}\n"
    assert supports("↓", stream) == (encoding == "utf-8")


def test_a_closed_pipe_does_not_end_the_program() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as stream:
        for _ in range(3):
            say("nobody reads this", stream)
        assert os.fstat(writing).st_rdev == os.stat(os.devnull).st_rdev  # later text is discarded


def test_a_full_disk_does_not_end_the_program() -> None:
    with open("/dev/full", "w") as stream:
        say("x" * 10000, stream)
        assert os.fstat(stream.fileno()).st_rdev == os.stat(os.devnull).st_rdev


def test_streams_that_are_closed_or_missing(standard: pytest.MonkeyPatch) -> None:
    stream = narrow("utf-8")
    stream.close()
    say("text", stream)
    standard.setattr(sys, "stdout", None)
    say("text")
    with unfailing_output():
        print("text")
        assert sys.stdout.isatty() is False


def test_nothing_in_the_block_fails_to_print(standard: pytest.MonkeyPatch) -> None:
    pipe = ClosedPipe()
    standard.setattr(sys, "stdout", pipe)
    standard.setattr(sys, "stderr", pipe)
    with unfailing_output():
        print("a result")
        sys.stdout.flush()
        assert list(tqdm(range(3))) == [0, 1, 2]
        say("more")
    assert pipe.writes > 3
    assert sys.stdout is pipe


def test_print_escapes_characters_in_the_block(standard: pytest.MonkeyPatch) -> None:
    stream = narrow("ascii")
    standard.setattr(sys, "stdout", stream)
    with unfailing_output():
        print("↓", os.fsdecode(b"\xff"))
        assert sys.stdout.encoding == "ascii"
    assert stream.buffer.getvalue() == rb"\u2193 \udcff" + b"\n"


def test_text_is_on_a_line_of_its_own_while_there_is_a_bar(standard: pytest.MonkeyPatch) -> None:
    stream = narrow("utf-8")
    standard.setattr(sys, "stderr", stream)
    with tqdm(total=3, desc="bar") as bar:
        bar.update()
        say("note", stream)
        bar.update()
    written = stream.buffer.getvalue().decode()
    before, _, after = written.partition("note\n")
    assert before.endswith("\r")  # the bar has been cleared
    assert "bar" in after


def test_bars_that_an_error_left_open_are_ended(standard: pytest.MonkeyPatch) -> None:
    stream = narrow("utf-8")
    standard.setattr(sys, "stderr", stream)
    bars = [tqdm(total=3, desc="bar")]
    close_progress_bars()
    say("error: it failed", stream)
    lines = stream.buffer.getvalue().decode().splitlines()
    assert lines[-1] == "error: it failed"
    assert bars[0].disable
    assert not list(terminal.tqdm._instances)
