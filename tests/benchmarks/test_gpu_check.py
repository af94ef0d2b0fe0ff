"""Tests of the check of a GPU: processes, report, command, and the parts on a CPU; no time is asserted."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from sashimi_diffusion.benchmarks.gpu_check import __main__ as command
from sashimi_diffusion.benchmarks.gpu_check import (
    card,
    counts,
    denoisers,
    gpu_tests,
    operations,
    peer,
    recipe,
    sampling,
    streams,
)
from sashimi_diffusion.benchmarks.gpu_check.goals import GOALS, Goal, best, derived
from sashimi_diffusion.benchmarks.gpu_check.parts import PARTS, Outcome, Part, run_parts
from sashimi_diffusion.benchmarks.gpu_check.report import goal_lines, markdown, number, write_report
from sashimi_diffusion.benchmarks.gpu_check.rows import Row, Setting, append_row, latest, read_rows

ROOT = Path(__file__).resolve().parents[2]
FAKE_PARTS = """
import json, os, pathlib, signal, subprocess, sys, time
from sashimi_diffusion.benchmarks.gpu_check.rows import Row

def good(setting, value):
    yield Row("good", value, 1.0, "ms")
    yield Row("good", value, 2.0, "ms")

def crash(setting):
    yield Row("before the crash", value=3.0)
    os.kill(os.getpid(), signal.SIGSEGV)

def error(setting):
    yield Row("before the error", value=4.0)
    raise ValueError("wrong size")

def hang(setting):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield Row("before the hang", value=float(child.pid))
    time.sleep(600)

def watch(setting):
    yield Row("first", value=5.0)
    report = pathlib.Path(setting.out) / "report.json"
    for _ in range(300):
        rows = [row for part in json.loads(report.read_text())["parts"] for row in part["rows"]]
        if rows:
            yield Row("seen", rows[0]["name"])
            return
        time.sleep(0.1)
"""


@pytest.fixture
def setting(tmp_path: Path) -> Setting:
    """Return the setting of a dry run."""
    return Setting("cpu", True, str(tmp_path))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Return a function that creates a part from a function of FAKE_PARTS."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "fake_parts.py").write_text(FAKE_PARTS)
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{ROOT}:{ROOT / 'kernels'}")

    def create(function: str, *arguments: str, seconds: float = 1) -> Part:
        return Part(function, f"the part {function}", f"fake_parts:{function}", seconds, arguments)

    return create


def test_a_crash_an_error_and_a_hang_leave_the_other_parts(fake, setting: Setting, tmp_path: Path, capsys) -> None:
    parts = [fake("crash"), fake("error"), fake("hang"), fake("good", "a", seconds=12)]
    assert command.check(parts, setting, {"card": "fake"}, seconds=16) == 1
    report = json.loads((tmp_path / "report.json").read_text())
    crashed, raised, hung, good = report["parts"]
    assert (crashed["status"], crashed["explanation"]) == ("failed", "killed by SIGSEGV")
    assert (raised["status"], raised["explanation"]) == ("failed", "exit code 1: ValueError: wrong size")
    assert hung["status"] == "stopped"
    assert "the time left for it" in hung["explanation"]
    assert [row["name"] for part in (crashed, raised, hung) for row in part["rows"]] == [
        "before the crash",
        "before the error",
        "before the hang",
    ]
    assert good["status"] == "done"
    assert [(row["variant"], row["value"]) for row in good["rows"]] == [("a", 2.0)]
    grandchild = int(hung["rows"][0]["value"])
    assert not psutil.pid_exists(grandchild) or psutil.Process(grandchild).status() == psutil.STATUS_ZOMBIE
    text = (tmp_path / "report.md").read_text()
    assert "| hang | the part hang | stopped |" in text
    assert "| before the crash |  | 3 |  |" in text
    assert capsys.readouterr().out.count("good, a: 2 ms") == 1


def test_the_report_is_written_after_every_row(fake, setting: Setting, tmp_path: Path) -> None:
    assert command.check([fake("watch")], setting, {"card": "fake"}, seconds=40) == 0
    assert [row.name for row in read_rows(tmp_path / "watch.jsonl")] == ["first", "seen"]


def test_unused_time_goes_to_later_parts_and_late_parts_keep_theirs(
    monkeypatch: pytest.MonkeyPatch, setting: Setting
) -> None:
    from sashimi_diffusion.benchmarks.gpu_check import parts as module

    limits = []

    def measured(part: Part, setting: Setting, limit: float):
        limits.append(limit)
        yield Outcome(part.name, part.title, "done")

    monkeypatch.setattr(module, "_run_part", measured)
    list(run_parts([Part(name, name, "", seconds) for name, seconds in (("a", 10), ("b", 30))], setting, 100))
    assert limits == [pytest.approx(100 - 60, abs=1), pytest.approx(100, abs=1)]


def test_parts_that_cannot_run_are_skipped(setting: Setting) -> None:
    parts = [Part("a", "a", "none:none", 1, needs_cuda=True), Part("b", "b", "none:none", 1, needs_peer=True)]
    outcomes = list(run_parts(parts, setting, 10))[-1]
    assert [outcome.status for outcome in outcomes] == ["skipped", "skipped"]
    assert [outcome.explanation for outcome in outcomes] == [
        "it needs a CUDA device",
        "no folder of the official code (--peer FOLDER)",
    ]


def test_parts_have_different_names_and_functions_that_exist() -> None:
    import importlib

    assert len({part.name for part in PARTS}) == len(PARTS)
    for part in PARTS:
        module, function = part.target.split(":")
        assert callable(getattr(importlib.import_module(module), function)), part.name


def test_the_compiled_models_run(setting: Setting) -> None:
    from sashimi_diffusion.benchmarks.gpu_check.compilation import runs

    assert sum(run() is not NotImplemented for run in runs(setting)) > 10


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")
def test_kernels_are_profiled() -> None:
    from sashimi_diffusion.benchmarks.gpu_check.profiles import kernel_times

    x = torch.ones(1000, device="cuda")
    times = kernel_times(lambda: x * 2)
    assert [len(each) for each in times.values()] == [1]
    assert min(map(min, times.values())) > 0


def test_rows_survive_an_incomplete_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    assert read_rows(path) == []
    rows = [Row("a", "b", 1.5, "ms", {"peak GiB": 2.0}), Row("c", problem="out of memory"), Row("a", "b", 2.5, "ms")]
    for row in rows:
        append_row(path, row)
    with path.open("a") as file:
        file.write('{"name": "d", "val')
    assert read_rows(path) == [rows[2], rows[1]] == latest(rows)


def outcome(*rows: Row) -> Outcome:
    return Outcome("part", "the part", "done", 3.0, rows=list(rows))


def test_goals_are_reached_or_missed_or_not_measured() -> None:
    rows = (
        Row("forward d 64, B 1", "nplr, bfloat16, triton, graph", 1.4, "ms", {"launches (profiler)": 251}),
        Row("forward d 64, B 1", "nplr, float32, torch", 30.0, "ms", {"launches (profiler)": 900}),
        Row("forward d 64, B 16", "nplr, bfloat16, torch", 7.0, "ms"),
        Row("forward d 128, B 16", "nplr, bfloat16, torch", problem="out of memory"),
        Row("training step d 64, B 16", "diag, bfloat16, triton", 20.0, "ms", {"peak GiB": 9.0}),
        Row("WaveNet forward, B 1", "float32", 14.0, "ms"),
        Row("autoregressive, 1 streams", "eager", 100.0, "samples/s"),
        Row("autoregressive, 1 streams", "triton", 9000.0, "samples/s"),
        Row("official forward d 64, B 16", "float32", 70.0, "ms"),
        Row("GPU tests", "passed", 90),
        Row("GPU tests", "failed", 0),
    )
    lines = {line.name: line for line in goal_lines([outcome(*rows)])}
    assert [line.name for line in lines.values()] == [goal.name for goal in GOALS]
    expected = {
        "forward d 64, B 1": (1.4, "reached"),
        "forward d 64, B 16": (7.0, "missed"),
        "forward d 128, B 16": (None, "not measured"),
        "training step d 64, B 16": (20.0, "reached"),
        "memory of training step d 64, B 16": (9.0, "missed"),
        "WaveNet over SaShiMi d 64, B 1": (10.0, "reached"),
        "WaveNet over SaShiMi d 64, B 16": (None, "not measured"),
        "autoregressive, 1 streams": (9000.0, "reached"),
        "launches of forward d 64, B 1": (251.0, "missed"),
        "launches of training step d 64, B 16": (None, "not measured"),
        "GPU tests that failed": (0.0, "reached"),
    }
    for name, (now, result) in expected.items():
        assert (lines[name].now, lines[name].result) == (pytest.approx(now), result), name
    assert lines["forward d 64, B 1"].variant == "nplr, bfloat16, triton, graph"
    assert lines["forward d 64, B 16"].official_now == 70.0


def test_the_names_of_goals_are_those_of_the_rows() -> None:
    names = {f"forward {size}" for size in denoisers.forward_sizes(tiny=False)}
    names |= {f"training step {size}" for size in denoisers.training_sizes(tiny=False)}
    rows = [Row(name, value=1.0, details={"peak GiB": 1.0, "launches (profiler)": 1.0}) for name in names]
    rows += [Row(f"WaveNet forward, B {batch}", value=1.0) for batch in (1, 16)] + [Row("GPU tests", "failed", 0)]
    names |= {row.name for row in derived(rows)}
    names |= {f"autoregressive, {count} streams" for count in (1, 32, 256)}
    names |= {"small recipe", "small recipe's share of the bare step"}
    assert {goal.name for goal in GOALS} <= names


def test_the_page_has_the_goals_and_the_numbers_of_the_h200() -> None:
    page = (ROOT / "docs" / "gpu.md").read_text()
    for goal in GOALS:
        target = f"{'≤' if goal.at_most else '≥'} {number(goal.target, goal.unit)}"
        line = next((line for line in page.splitlines() if line.startswith(f"| {goal.name} |")), "")
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[1:5] == [text or "-" for text in (target, goal.official, goal.eager, goal.graph)], goal.name
    for fact in ("2026-11-27", "70bbb2c", "torch 2.11", "Triton 3.6", "748 TFLOP/s", "4.2 TB/s"):
        assert fact in page
    for part in PARTS:
        assert f"`{part.name}`" in page, part.name


def test_markdown_has_shares_and_counted_launches_and_missing_values() -> None:
    rows = (
        Row(card.COPY, "1 GiB", 1000.0, "GB/s"),
        Row("forward d 64, B 1", "nplr, bfloat16, triton, graph", 2.0, "ms", {"launches (profiler)": 240}),
        Row("forward d 64, B 1", "diag, bfloat16, triton", problem="it has | a pipe\nand a line"),
        Row(f"{counts.COUNTS} forward d 64, B 1", "nplr, bfloat16, triton", 250, "launches", {"bytes": 1e9}),
        Row("GPU", value="a name"),
        Row("nothing"),
    )
    text = markdown({"card": "fake", "commit": "abc"}, [outcome(*rows)])
    assert "# GPU check: fake" in text
    line = next(
        line for line in text.splitlines() if line.startswith("| forward d 64, B 1 | nplr, bfloat16, triton, graph")
    )
    assert "| 2 ms | 240 | 250 | 50% |" in line  # 1 GB in 2 ms is half of 1,000 GB/s
    assert "it has \\| a pipe and a line" in text
    assert "| GPU |  | a name |" in text
    assert "| nothing |  | - |" in text
    tables = [block for block in text.split("\n\n") if block.startswith("|")]
    assert all(len({row.replace("\\|", "").count("|") for row in table.splitlines()}) == 1 for table in tables)


def test_a_report_without_parts_is_complete(tmp_path: Path) -> None:
    write_report(tmp_path, {"card": "fake"}, [])
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["card"], report["parts"]) == ("fake", [])
    assert {goal["result"] for goal in report["goals"]} == {"not measured"}
    assert (tmp_path / "report.md").read_text().count("| not measured |") == len(GOALS)


def test_the_best_row_is_a_number() -> None:
    rows = [Row("a", "1", 2.0), Row("a", "2", 1.0), Row("a", "3", 0.5, problem="wrong"), Row("a", "4", "text")]
    assert best(rows, "a") == rows[1]
    assert best(rows, "a", at_most=False) == rows[0]
    assert best(rows, "b") is None
    assert Goal("a", 2, "ms").reached(2.0)
    assert not Goal("a", 2, "ms", at_most=False).reached(1.9)


def test_the_output_of_pytest_is_counted_test_by_test() -> None:
    lines = [
        "tests/a.py::test_one PASSED [ 20%]\n",
        "tests/a.py::test_two[x y] FAILED [ 40%]\n",
        "tests/a.py::test_three SKIPPED (no card) [ 60%]\n",
        "tests/b.py::test_four ERROR [ 80%]\n",
        "tests/b.py::test_crashing \n",
    ]
    rows = latest(gpu_tests.results(lines))
    counted = {row.variant: row.value for row in rows if row.name == "GPU tests"}
    assert counted == {"passed": 1, "failed": 2, "skipped": 1}
    assert [row.variant for row in rows if row.problem] == ["tests/a.py::test_two[x y]", "tests/b.py::test_four"]


def test_the_marker_of_gpu_tests_exists() -> None:
    assert f'"{gpu_tests.MARKER}: ' in (ROOT / "pyproject.toml").read_text()
    assert gpu_tests.ROOT == ROOT
    assert recipe.CONFIG.is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "error: no CUDA device: "),
        (("--only", "card", "nothing"), "error: unknown part 'nothing': expected some of card, "),
        (("--minutes", "0"), "error: --minutes is 0: expected a number above 0 and up to 1440"),
        (("--peer", "missing-folder"), "error: the folder missing-folder of --peer does not exist: see docs/gpu.md"),
        (
            ("--dry-run", "--out", "/dev/null/folder"),
            "error: cannot write to /dev/null/folder: Not a directory; choose another --out",
        ),
    ],
)
def test_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, options: tuple[str, ...], message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu_check", *options])
    assert command.main() == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(message)
    assert printed.err.count("\n") == 1


def test_parts_can_be_listed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_check", "--list"])
    assert command.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [part.name for part in PARTS]


def test_a_dry_run_writes_a_report(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "sashimi_diffusion.benchmarks.gpu_check", "--dry-run", "--only", "tests", "card"]
    done = subprocess.run([*line, "--out", str(tmp_path / "out")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [(part["part"], part["status"]) for part in report["parts"]] == [("card", "done"), ("tests", "skipped")]
    assert {"torch", "copy bandwidth"} <= {row["name"] for row in report["parts"][0]["rows"]}
    assert "dry run" in report["card"]
    assert "report.md" in done.stdout


@pytest.mark.parametrize(
    ("measure", "arguments", "names"),
    [
        (card.measure, (), {"copy bandwidth", "matrix product, bfloat16", "torch"}),
        (denoisers.forward, ("torch",), {"forward d 8, B 1", "forward d 8, B 2"}),
        (denoisers.training, ("torch",), {"training step d 8, B 2"}),
        (denoisers.wavenet, (), {"WaveNet forward, B 1", "WaveNet forward, B 2"}),
        (sampling.measure, (), {"sampling 0.05 s in 3 steps", "largest difference to the CPU's audio, 3 steps"}),
        (operations.measure, (), {"diagonal_kernel", "chunked_convolution", "scalar_norm"}),
        (recipe.measure, ("muon", "fp32"), {"tiny recipe", "tiny recipe's share of the bare step"}),
        (counts.measure, (), {f"{counts.COUNTS} forward d 8, B 1", f"{counts.COUNTS} training step d 8, B 2"}),
    ],
    ids=lambda value: value.__module__.split(".")[-1] if callable(value) else "",
)
def test_parts_run_on_a_cpu(
    monkeypatch: pytest.MonkeyPatch, setting: Setting, tmp_path: Path, measure, arguments: tuple, names: set[str]
) -> None:
    monkeypatch.setenv("SASHIMI_KERNELS", "auto")  # some parts set these variables in their process
    monkeypatch.setenv("SASHIMI_CACHE", str(tmp_path / "cache"))
    if measure is counts.measure:
        monkeypatch.setattr(denoisers, "PARAMETERIZATIONS", ("diag",))
    rows = list(measure(setting, *arguments))
    assert names <= {row.name for row in rows}
    assert [row for row in rows if row.problem is not None] == []
    assert all(not isinstance(row.value, float) or row.value >= 0 for row in rows)
    assert {goal.result for goal in goal_lines([outcome(*rows)])} == {"not measured"}, "tiny sizes have no goals"


def test_streams_run_with_every_engine_that_can(monkeypatch: pytest.MonkeyPatch, setting: Setting) -> None:
    monkeypatch.setattr(streams, "ENGINES", ("auto", "eager", "cuda-graph"))  # numba compiles for minutes
    rows = {(row.name, row.variant): row for row in streams.measure(setting)}
    for name in ("autoregressive, tiny, 1 streams", "autoregressive, tiny, 2 streams"):
        assert rows[name, "eager, float32"].value > 0
        assert "cannot run: the model is on cpu" in rows[name, "cuda-graph, float32"].problem
    assert len(rows) == 4


OFFICIAL = """
import torch
from models.s4 import S4

class Sashimi(torch.nn.Module):
    def __init__(self, d_model, L, unconditional, **others):
        super().__init__()
        self.linear, self.size = S4(L, L), (1, L)

    def forward(self, inputs):
        audio, steps = inputs
        assert audio.shape[1:] == self.size and steps.shape == (len(audio), 1)
        return self.linear(audio)
"""
BACKBONE = """
import torch
from models.s4 import S4

class Sashimi(torch.nn.Module):
    def __init__(self, d_model, bidirectional, **others):
        super().__init__()
        self.linear = S4(d_model, d_model)

    def forward(self, x):
        return self.linear(x), None
"""
LAYER = """
from torch.nn import Linear
try:
    from extensions.cauchy import cauchy_mult
    has_cauchy_extension = True
except ImportError:
    has_cauchy_extension = False

class S4(Linear):
    pass
"""


@pytest.fixture
def official(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Return a function that writes a folder with the interface of an official repository."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    folder = tmp_path / "diffwave-sashimi"

    def write(path: str, code: str, extension: bool = True) -> Setting:
        for name, content in ((path, code), ("models/s4.py", LAYER), ("extensions/cauchy.py", "cauchy_mult = None")):
            if extension or not name.startswith("extensions"):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text(content)
        return Setting("cpu", True, str(tmp_path), str(folder))

    return write


@pytest.mark.parametrize("extension", ["with", "without"])
@pytest.mark.parametrize(("path", "code"), [("models/sashimi.py", OFFICIAL), ("models/sashimi/sashimi.py", BACKBONE)])
def test_the_official_code_is_timed(official, path: str, code: str, extension: str) -> None:
    rows = list(peer.measure(official(path, code), extension))
    assert [row.problem for row in rows] == [None] * len(rows)
    assert {row.name for row in rows} == {
        "official forward d 8, B 1",
        "official forward d 8, B 2",
        "official training step d 8, B 2",
    }
    assert {row.variant for row in rows} == {
        f"diffwave-sashimi, {extension} extension, {precision}" for precision in ("float32", "bfloat16")
    }


def test_a_missing_extension_of_the_official_code_is_named(official) -> None:
    (row,) = peer.measure(official("models/sashimi.py", OFFICIAL, extension=False), "with")
    assert row.problem == "the extension is not built: see docs/gpu.md"


def test_another_folder_is_not_the_official_code(official) -> None:
    with pytest.raises(FileNotFoundError, match=r"neither models/sashimi\.py \(diffwave-sashimi\) nor"):
        next(peer.measure(official("models/other.py", ""), "with"))
