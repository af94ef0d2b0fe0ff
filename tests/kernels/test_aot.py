"""Tests of ahead-of-time compilation: every kernel fits its targets, problems are reported."""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sashimi_kernels import aot
from sashimi_kernels.hardware import HARDWARE

pytest.importorskip("triton", reason="the triton package is not installed")

TARGETS = ("cuda:80", "cuda:90", "hip:gfx942", "hip:gfx1100")

# Replaces the kernels of the package by kernels that are correct or have one problem each.
TOYS = """
import sys
import triton
import triton.language as tl
from sashimi_kernels import aot
from sashimi_kernels.triton_backend.launch import Launch

@triton.jit
def copy(x_ptr, y_ptr, length, x_position_stride, BLOCK: tl.constexpr):
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + offsets, tl.load(x_ptr + offsets * x_position_stride, offsets < length), offsets < length)

@triton.jit
def product(x_ptr, y_ptr, n, BLOCK: tl.constexpr, PRECISION: tl.constexpr):
    offsets = tl.arange(0, BLOCK)[:, None] * n + tl.arange(0, BLOCK)[None, :]
    total = tl.zeros((BLOCK, BLOCK), tl.float32)
    for start in range(0, n, BLOCK):
        x = tl.load(x_ptr + start + offsets)
        y = tl.load(x_ptr + start * n + offsets)
        total = tl.dot(x, y, total, input_precision=PRECISION)
    tl.store(y_ptr + offsets, total)

@triton.jit
def spilling(x_ptr, y_ptr, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets)
    tl.store(y_ptr + offsets, x - tl.sum(x))

@triton.jit
def wrong(x_ptr, y_ptr, n):
    tl.store(y_ptr, tl.load(x_ptr) + missing)

@triton.jit
def converted(x_ptr, y_ptr, length, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(y_ptr + offsets, tl.load(x_ptr + offsets + length.to(tl.int64)))

vector = {"x_ptr": "*fp32", "y_ptr": "*fp32", "length": "i32", "x_position_stride": "i32"}
square = {"x_ptr": "*fp16", "y_ptr": "*fp32", "n": "i32"}
pair = {"x_ptr": "*fp32", "y_ptr": "*fp32"}
launches = {
    "copy": Launch(copy, vector, {"BLOCK": 256}, 4, 2, matrix=False),
    "product": Launch(product, square, {"BLOCK": 32, "PRECISION": "ieee"}, 4, 2, matrix=True),
    "idle": Launch(copy, vector, {"BLOCK": 256}, 4, 2, matrix=True),
    "spilling": Launch(spilling, pair, {"BLOCK": 8192}, 1, 2, matrix=False),
    "wide": Launch(product, square, {"BLOCK": 64, "PRECISION": "ieee"}, 4, 20, matrix=True),
    "converted": Launch(converted, {**pair, "length": "i32"}, {"BLOCK": 16}, 4, 2, matrix=False),
    "wrong": Launch(wrong, square, {}, 4, 2, matrix=False),
}
names = sys.argv.pop(1).split(",")
aot.every_launch = lambda: tuple(launches[name] for name in names)
sys.exit(aot.main())
"""


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Return a function that runs Python without the Triton interpreter and with an empty Triton cache."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
        inherited = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        environment = {**inherited, "TRITON_CACHE_DIR": str(tmp_path / "triton"), "OMP_NUM_THREADS": "1", **environment}
        command = [sys.executable, *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path, check=False)

    return run


@pytest.fixture
def run_toys(run: Callable, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess]:
    """Return a function that runs the command on some of ``TOYS``."""
    script = tmp_path / "toys.py"
    script.write_text(TOYS)

    def run_toys(names: str, *targets: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
        chosen = [option for target in targets for option in ("--target", target)]
        return run(str(script), names, "--jobs", "1", *chosen, *options)

    return run_toys


def test_table_of_correct_kernels(run_toys: Callable) -> None:
    done = run_toys("copy,product", *TARGETS)
    assert done.returncode == 0, done.stderr
    header, *rows = (line.split() for line in done.stdout.splitlines())
    assert header == ["kernel", "target", "registers", "spills", "shared", "warps", "matrix", "form"]
    assert len(rows) == (4 + 3) * len(TARGETS)
    found = {(row[0], row[1]): row for row in rows}
    for target, matrix in zip(TARGETS, ("mma.sync", "mma.sync", "mfma", "wmma"), strict=True):
        _, _, registers, spills, shared, occupancy, instructions, *form = found["product", target]
        assert instructions == matrix
        assert 0 < int(registers) <= 255
        assert int(spills) == 0
        assert 0 < int(shared) <= HARDWARE[target].shared_block
        assert 0 < int(occupancy.removesuffix("%")) <= 100
        assert form == ["fp16/fp32", "BLOCK=32", "PRECISION=ieee", "warps=4", "ones"]
    assert found["copy", "cuda:80"][4:7] == ["0", "100%", "-"]
    registers = {row[-1]: int(row[2]) for row in rows if row[:2] == ["copy", "cuda:80"]}
    assert list(registers) == ["any", "contiguous", "aligned", "ones"]
    assert max(registers["aligned"], registers["ones"]) < registers["any"], "known arguments save address registers"


def test_markdown_has_a_row_per_kernel(run_toys: Callable) -> None:
    done = run_toys("copy,product", "cuda:80", "cuda:90", options=("--markdown",))
    assert done.returncode == 0, done.stderr
    header, rule, copy, product = done.stdout.splitlines()
    assert header == "| kernel | forms | cuda:80 | cuda:90 |"
    assert rule == "|---|---|---|---|"
    assert copy.startswith("| `copy` | 1 | ")
    assert " registers, 0 KiB, 100% |" in copy
    assert "mma.sync" in product
    assert "spills" not in product


def test_problems_are_reported(run_toys: Callable) -> None:
    done = run_toys("copy,spilling,wide,idle,wrong", "cuda:90")
    assert done.returncode == 1
    problems = [line for line in done.stderr.splitlines() if line.startswith("problem: ")]
    expected = [
        r"spilling \(fp32/fp32 BLOCK=8192 warps=1 any\) for cuda:90 spills \d+ bytes of registers per lane",
        r"product \(.*\) for cuda:90 takes \d+ bytes of shared memory, but the limit of a block is 232448",
        r"copy \(.*\) for cuda:90 has no matrix instruction, but its design requires one",
        r"wrong \(.*\) for cuda:90 does not compile: .*missing.*",
    ]
    for pattern in expected:
        assert any(re.fullmatch(f"problem: {pattern}", problem) for problem in problems), done.stderr
    assert "does not compile" in done.stdout


def test_unused_matrix_units_are_reported_on_amd(run_toys: Callable) -> None:
    done = run_toys("copy,idle", "hip:gfx942")
    assert done.returncode == 1
    assert re.search(r"problem: copy \(.*\) for hip:gfx942 has no matrix instruction", done.stderr)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--target", "cuda:7"), "error: unknown target 'cuda:7': expected one of cuda:80, "),
        (("--target", "cuda:80", "--target", "gfx942"), "error: unknown target 'gfx942': expected one of cuda:80, "),
        (("--jobs", "0"), "error: argument --jobs: expected a number above 0"),
        (("--kernel", "nothing"), "error: unknown kernel 'nothing': expected one of "),
    ],
)
def test_errors_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, options: tuple[str, ...], message: str
) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert_refused(monkeypatch, capsys, message, *options)


def test_compilation_with_the_triton_interpreter_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert_refused(monkeypatch, capsys, "error: TRITON_INTERPRET is set, so Triton interprets kernels")


def test_compilation_without_triton_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.delitem(sys.modules, "sashimi_kernels.compilation", raising=False)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert_refused(monkeypatch, capsys, "error: compiling kernels requires a recent triton package")


def assert_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, message: str, *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["aot", *options])
    assert aot.main() == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(message)
    assert printed.err.count("\n") == 1


@pytest.mark.slow
def test_every_kernel_in_every_form_fits_every_target(run: Callable) -> None:
    done = run("-m", "sashimi_kernels.aot")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_one_form_of_every_kernel_fits(run: Callable) -> None:
    """One form per kernel and target; the assumptions alternate, so that every target meets each of them."""
    code = f"""
from sashimi_kernels import aot
from sashimi_kernels.compilation import assumptions
launches = aot.every_launch()
kernels = dict.fromkeys(launch.kernel.__name__ for launch in launches)
for turn, kernel in enumerate(kernels):
    for offset, target in enumerate({TARGETS}):
        positions = [i for i, one in enumerate(launches)
                     if one.kernel.__name__ == kernel and target in (one.targets or (target,))]
        if not positions:
            print(kernel, target)
            continue
        position = positions[-1]
        known = assumptions(launches[position])
        outcome = aot.compile_task(aot.Task(position, target, known[(turn + offset) % len(known)]))
        print(*outcome.problems or ["fits"], sep="\\n")
"""
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    # Other kernels take the place of those that do not fit RDNA; PyTorch's products that of the states' kernel on AMD.
    linear = ("gated_linear", "gated_linear_backward", "feed_forward", "feed_forward_backward")
    absent = {f"{name}_kernel hip:gfx1100" for name in (*linear, "chunk_states")} | {"chunk_states_kernel hip:gfx942"}
    assert set(done.stdout.splitlines()) == {"fits", *absent}


def test_integers_that_are_1_are_a_case_of_their_own(run_toys: Callable) -> None:
    """Triton turns them into constants, which have no methods of tensors."""
    done = run_toys("converted", "cuda:90")
    assert done.returncode == 1
    problems = [line for line in done.stderr.splitlines() if line.startswith("problem: ")]
    assert len(problems) == 1
    assert re.search(r"converted \(fp32/fp32 BLOCK=16 warps=4 ones\) for cuda:90 does not compile: .*'to'", problems[0])


def test_forms_with_a_known_multiple_meet_fewer_assumptions() -> None:
    from sashimi_kernels.compilation import assumptions

    launch = next(one for one in aot.every_launch() if one.kernel.__name__ == "_gated_residual_kernel")
    found = {factor: assumptions(launch._replace(constants={"MULTIPLE": factor})) for factor in (1, 8)}
    assert found == {1: ("any", "contiguous", "ones"), 8: ("contiguous", "aligned")}
    assert assumptions(launch._replace(constants={"ALIGNED": 8})) == ("aligned",)


@pytest.mark.parametrize(
    ("target", "registers", "shared", "warps", "occupancy"),
    [
        ("cuda:80", 32, 0, 4, 1.0),
        ("cuda:80", 33, 0, 4, 48 / 64),
        ("cuda:80", 64, 0, 4, 32 / 64),
        ("cuda:90", 255, 0, 4, 8 / 64),
        ("cuda:80", 32, 100 * 1024, 4, 4 / 64),
        ("cuda:80", 32, 163 * 1024, 8, 8 / 64),
        ("cuda:90", 32, 75 * 1024, 4, 12 / 64),
        ("cuda:80", 16, 0, 1, 32 / 64),
        ("cuda:89", 40, 0, 4, 48 / 48),
        ("hip:gfx942", 128, 0, 4, 16 / 32),
        ("hip:gfx942", 64, 32 * 1024, 4, 8 / 32),
        ("hip:gfx1100", 96, 0, 4, 64 / 64),
        ("hip:gfx1100", 97, 0, 4, 12 * 4 / 64),
        ("hip:gfx1100", 32, 48 * 1024, 4, 8 / 64),
    ],
)
def test_occupancy_is_the_smallest_of_the_limits(
    target: str, registers: int, shared: int, warps: int, occupancy: float
) -> None:
    assert HARDWARE[target].occupancy(registers, shared, warps) == pytest.approx(occupancy)
