"""Tests of what all commands share: exit codes, and errors and warnings of one line."""

import os
import re
import signal
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import pytest
from tqdm import tqdm

from sashimi_diffusion import scripts
from sashimi_diffusion.command_line import Parser, positive, run, select_device, whole_number
from sashimi_diffusion.commands import demo, sample, train
from sashimi_diffusion.errors import UserError


def test_an_error_begins_a_line_after_a_progress_bar(capsys: pytest.CaptureFixture) -> None:
    def command() -> None:
        for _ in tqdm(range(3), desc="batches"):
            raise UserError(f"cannot use \x1b[31m{os.fsdecode(bytes([255]))}.wav:\nno audio")

    assert run(command) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == r"error: cannot use \x1b[31m\udcff.wav: no audio"
    assert "batches" in lines[-2]


def test_an_interrupt_begins_a_line_after_a_progress_bar(capsys: pytest.CaptureFixture) -> None:
    def command() -> None:
        for _ in tqdm(range(3), desc="batches"):
            raise KeyboardInterrupt

    assert run(command) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"


def test_the_exit_code_of_an_error_and_the_text_of_an_interrupt(capsys: pytest.CaptureFixture) -> None:
    class Unlucky(UserError):
        exit_code = 1

    for error, code, line in [
        (Unlucky("bad end"), 1, "error: bad end"),
        (KeyboardInterrupt("stopped"), 130, "stopped"),
    ]:

        def command(error: BaseException = error) -> None:
            raise error

        assert run(command) == code
        assert capsys.readouterr().err == f"{line}\n"
        assert run(command, lambda error: False) == code
        assert capsys.readouterr().err == ""


def test_a_warning_is_one_line(capsys: pytest.CaptureFixture) -> None:
    show_warning = warnings.showwarning

    def command() -> None:
        warnings.warn("the prefix \x1b\nis resampled", stacklevel=1)

    assert run(command) == 0
    assert capsys.readouterr().err == "warning: the prefix \\x1b is resampled\n"
    assert warnings.showwarning is show_warning


def test_errors_of_the_command_line_have_a_limited_length(capsys: pytest.CaptureFixture) -> None:
    parser = Parser(prog="tool")
    parser.add_argument("--number", type=int)
    for arguments in (["--number", "9" * 5000], ["--unknown" + "x" * 5000]):
        assert run(lambda arguments=arguments: parser.parse_args(arguments)) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.endswith(" (see tool --help)\n")
        assert len(error) < 600


def test_a_result_is_printed_into_a_closed_pipe() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    kept = sys.stdout
    with open(writing, "w") as sys.stdout:
        assert run(lambda: print("x" * 100_000)) == 0
        with pytest.raises(SystemExit) as stopped:
            sample.main(["--help"])
        assert stopped.value.code == 0
    sys.stdout = kept


@pytest.mark.parametrize("name", ["hpu", "privateuseone", "opencl", "xla", "meta", "cuda:-1", "", "\x1b", "cuda:" * 99])
def test_devices_that_are_not_there_are_named(name: str) -> None:
    with pytest.raises(UserError, match=r"cannot be used, try --device auto: ") as caught:
        select_device(name)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_a_misspelled_option_is_corrected(capsys: pytest.CaptureFixture) -> None:
    parser = Parser(prog="sashimi-sample")
    parser.add_argument("--steps")
    assert run(lambda: parser.parse_args(["--stpes=5", "--out", "x"])) == 2
    expected = "error: unrecognized arguments: --stpes=5 --out x, did you mean --steps? (see sashimi-sample --help)\n"
    assert capsys.readouterr().err == expected
    assert run(lambda: parser.parse_args(["--zzz"])) == 2
    assert capsys.readouterr().err == "error: unrecognized arguments: --zzz (see sashimi-sample --help)\n"


def test_an_interruption_while_packages_load_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "slow_command.py").write_text(
        "import os, signal, time\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(60)\n"
        "except BaseException as error:  # as some packages do\n"
        "    raise RecursionError from error\n"
    )
    code = (
        "import signal, sys; from sashimi_diffusion.scripts import start\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background ignore the signal\n"
        "sys.exit(start('slow_command'))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(tmp_path)])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_a_started_command_has_the_usual_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "quick_command.py").write_text("import signal\ndef main():\n    return signal.getsignal(2)\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert scripts.start("quick_command") is signal.getsignal(signal.SIGINT)


def test_every_console_script_has_a_command() -> None:
    """Each function of the scripts starts a module with a ``main``."""
    project = (Path(__file__).resolve().parents[1] / "pyproject.toml").read_text(encoding="utf-8")
    named = re.findall(r'^sashimi-\w+ = "sashimi_diffusion\.scripts:(\w+)"$', project, re.MULTILINE)
    assert named
    source = Path(scripts.__file__).read_text(encoding="utf-8")
    for name in named:
        module = re.search(rf'^def {name}\(\).*?start\("([\w.]+)"\)', source, re.MULTILINE | re.DOTALL)[1]
        assert callable(import_module(module).main)


@pytest.mark.parametrize("kind", [positive, demo._port, whole_number])
def test_an_option_that_is_no_number_is_not_called_after_a_function(capsys: pytest.CaptureFixture, kind) -> None:
    parser = Parser(prog="tool")
    parser.add_argument("--port", type=kind)
    assert run(lambda: parser.parse_args(["--port", "x"])) == 2
    assert capsys.readouterr().err == "error: argument --port: expected a whole number, got 'x' (see tool --help)\n"


def test_a_working_directory_that_was_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    assert train.main(["init", "takes"]) == 2
    assert capsys.readouterr().err == "error: the working directory was removed: change to another one with cd\n"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError):  # another file is missing
        run(lambda: Path("none").read_text() and None)


def test_the_help_shows_several_defaults_as_they_are_given() -> None:
    parser = Parser(prog="command")
    parser.add_argument("--lines", type=int, nargs="+", default=(1, 2), help="frequencies")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument("--out", help="a folder (default: none)")
    text = parser.format_help()
    assert "frequencies (default: 1 2)\n" in text
    assert "random seed (default: 0)\n" in text
    assert "a folder (default: none)\n" in text
