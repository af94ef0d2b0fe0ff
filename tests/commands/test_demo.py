"""Tests of the command ``sashimi-demo``: its errors, its address and its end."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sashimi_diffusion.commands import demo


def error_of(capsys: pytest.CaptureFixture, *arguments: object) -> str:
    """Return the one line that the command prints for an error of the user."""
    assert demo.main([str(argument) for argument in arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


def test_missing_gradio_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert error_of(capsys, "--port", 0) == "error: sashimi-demo needs gradio: pip install gradio"


def test_an_old_gradio_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    class Old:
        __version__ = "5.49.1"

    monkeypatch.setitem(sys.modules, "gradio", Old())
    assert error_of(capsys, "--port", 0) == (
        "error: sashimi-demo needs gradio 6 or newer, and 5.49.1 is installed: pip install --upgrade gradio"
    )


def test_a_port_in_use_is_one_line_with_another_port(capsys: pytest.CaptureFixture) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        line = error_of(capsys, "--port", port)
    start = f"error: port {port} is in use: try --port "
    assert line.startswith(start)
    with demo.listen("127.0.0.1", int(line.removeprefix(start))) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"


@pytest.mark.parametrize("port", ["-1", "65536", "many"])
def test_impossible_ports_are_refused(capsys: pytest.CaptureFixture, port: str) -> None:
    assert "argument --port: " in error_of(capsys, f"--port={port}")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code", "last"), [(signal.SIGINT, 130, "interrupted\n"), (signal.SIGTERM, 143, "")])
def test_the_page_opens_and_ends(tmp_path: Path, number: signal.Signals, code: int, last: str) -> None:
    pytest.importorskip("gradio", reason="the page needs gradio: pip install gradio")
    command = [sys.executable, "-m", "sashimi_diffusion.commands.demo", "--port", "0", "--no-browser"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    line = process.stdout.readline()
    assert line.startswith("sashimi-demo is ready: http://127.0.0.1:")
    port = int(line.split(":")[3].split("/")[0])
    with socket.create_connection(("127.0.0.1", port)) as client:
        client.sendall(b"GET / HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
        assert client.makefile("rb").readline().split()[1] == b"200"
        assert len(list(tmp_path.glob("sashimi-demo-*"))) == 1
        process.send_signal(number)
        out, err = process.communicate(timeout=120)
    assert (process.returncode, out, err) == (code, "", last)
    assert list(tmp_path.glob("sashimi-demo-*")) == []
