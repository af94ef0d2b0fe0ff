"""Tests of the benchmark: measurements, table, choices stored for ``backend="auto"``."""

import argparse
import functools
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sashimi_kernels import available_backends, benchmark, choices, measuring
from sashimi_kernels.benchmark import Row, fastest
from sashimi_kernels.workloads import OPERATIONS, Sizes, workloads

FORWARD_ONLY = ("diagonal_state", "nplr_state", "diagonal_step", "nplr_step")
TIMELESS = ("chunk_operators", "diagonal_step", "nplr_step")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Return a function that runs the command in this process, with a new cache, and returns the exit code."""
    monkeypatch.setenv("SASHIMI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(measuring, "_GEMM_SIZE", 64)

    def run(*options: str) -> int:
        monkeypatch.setattr(sys, "argv", ["benchmark", *options])
        return benchmark.main()

    return run


def test_every_operation_has_rows(run, capsys: pytest.CaptureFixture) -> None:
    assert run("--features", "2", "--states", "6", "--length", "20", "33", "--repeats", "1") == 0
    conditions, peak, header, *rows = capsys.readouterr().out.splitlines()
    assert conditions.startswith(f"H 2, N 6, batch 1; torch {torch.__version__}, {torch.get_num_threads()} threads")
    assert re.fullmatch(r"matrix product, .* GFLOP/s", peak)
    assert header.split() == ["operation", "L", "dtype", "pass", "reference", "torch", "faster"]
    timed = r"[\d,]+\.\d+ ms +[\d,]+\.\d MiB"
    pattern = rf"(\w+) +(1|20|33) float32  (forward|forward \+ backward) +{timed} +{timed} +\d+\.\dx"
    found = [re.fullmatch(pattern, row) for row in rows]
    assert all(found), rows
    counts = {name: [row[1] for row in found].count(name) for name in OPERATIONS}
    assert counts == {name: (1 if name in FORWARD_ONLY else 2) * (1 if name in TIMELESS else 2) for name in OPERATIONS}
    assert len(rows) == sum(counts.values())


def test_rows_and_backends_can_be_chosen(run, capsys: pytest.CaptureFixture) -> None:
    options = ("--features", "2", "--length", "20", "--repeats", "1", "--operation", "gated_residual", "nplr_step")
    assert run(*options, "--backend", "torch", "--dtype", "bfloat16", "--batch-size", "2") == 0
    _, _, header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == ["operation", "L", "dtype", "pass", "torch", "faster"]
    assert [row.split()[:3] for row in rows] == [
        ["nplr_step", "1", "bfloat16"],
        *[["gated_residual", "20", "bfloat16"]] * 2,
    ]
    assert not choices.choices_file().exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "cuda"), "finds no CUDA or ROCm device 'cuda': use --device cpu"),
        (("--device", "mps"), "the device 'mps' is not one of cpu, cuda"),
        (("--device", "nonsense"), "the device 'nonsense' is not one of cpu, cuda"),
        (("--operation", "nothing"), "argument --operation: invalid choice: 'nothing'"),
        (("--repeats", "0"), "argument --repeats: expected a number above 0, got 0 (see --help)"),
        (("--length", "long"), "argument --length: expected a whole number, got 'long'"),
        (("--backend", "triton"), "kernel backend 'triton' cannot run on cpu"),
    ],
)
def test_errors_are_one_line(
    run, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], message: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert run(*options) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert message in printed.err
    assert printed.err.count("\n") == 1


@pytest.mark.parametrize(
    ("backend", "dtype"), [("torch", torch.float32), ("torch", torch.bfloat16), ("triton", torch.float32)]
)
def test_backends_agree_on_the_workloads(backend: str, dtype: torch.dtype) -> None:
    """Times of backends are comparable only if their results agree."""
    if backend == "triton":
        pytest.importorskip("triton", reason="the triton package is not installed")
    device = "cuda" if backend == "triton" and torch.cuda.is_available() else "cpu"
    for workload in workloads(Sizes(2, 3, 4, 40), dtype, device):
        expected, actual = workload.run("reference"), workload.run(backend)
        tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-4
        assert (actual - expected).abs().max() <= tolerance * expected.abs().max(), workload.operation
        workload.forward(backend)
        if workload.inputs:
            workload.backward(backend)


def test_choices_are_made_by_the_pass_with_gradients() -> None:
    def row(operation: str, length: int, passes: str, batch: int = 1, **seconds: float) -> Row:
        return Row(operation, length, torch.float16, passes, seconds, {}, batch)

    rows = [
        row("scalar_norm", 1000, "forward", reference=0.1, torch=2.0, triton=1.0),
        row("scalar_norm", 1000, "forward + backward", reference=0.1, torch=3.0, triton=4.0),
        row("scalar_norm", 64000, "forward", torch=math.inf, triton=4.0),
        row("diagonal_step", 1, "forward", torch=2.0, triton=1.0),
        row("layer_norm", 1000, "forward", reference=1.0, torch=2.0),
        row("fft_convolution", 1000, "forward", torch=2.0, triton=1.0),
    ]
    assert fastest(rows) == {
        "scalar_norm float16 1000": "torch",
        "scalar_norm float16 64000": "triton",
        "diagonal_step float16 1000": "triton",
    }
    small = row("layer_norm", 4000, "forward", torch=1.0, triton=2.0)
    large = row("layer_norm", 4000, "forward", batch=16, torch=2.0, triton=1.0)
    assert fastest([small, large]) == {"layer_norm float16 4000": "torch", "layer_norm float16 64000": "triton"}


def test_the_chunked_convolution_is_compared_with_the_fft() -> None:
    def rows(batch: int, fft: dict[str, float]) -> list[Row]:
        chunked = {"torch": 9.0, "triton": 2.0}
        cases = (("fft_convolution", fft), ("chunked_convolution", chunked))
        return [Row(name, 4000, torch.bfloat16, "forward", seconds, {}, batch) for name, seconds in cases]

    fast, slow = {"torch": 3.0, "triton": 1.0}, {"torch": 4.0, "triton": 3.0}
    assert fastest([*rows(1, fast), *rows(4, slow)]) == {
        "chunked_convolution bfloat16 4000": "torch",
        "chunked_convolution bfloat16 16000": "triton",
    }


def test_the_generation_of_kernels_has_no_batch(run, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    monkeypatch.setattr(benchmark, "fastest", lambda rows: measured.extend(rows) or {})
    operations = ("--operation", "diagonal_kernel", "layer_norm", "nplr_step")
    assert run("--features", "2", "--length", "20", "--repeats", "1", "--batch-size", "2", "3", *operations) == 0
    assert {(row.operation, row.batch) for row in measured} == {
        ("diagonal_kernel", 1),
        *((name, batch) for name in ("layer_norm", "nplr_step") for batch in (2, 3)),
    }


def test_choices_can_be_written_into_the_package(run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "measured_choices.json"
    path.write_text("{}")
    arguments = argparse.Namespace(save_shipped=True)
    monkeypatch.setattr(benchmark, "SHIPPED_CHOICES", path)
    monkeypatch.setattr(benchmark, "save_shipped_choices", functools.partial(choices.save_shipped_choices, path=path))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200")
    assert benchmark._saved(torch.device("cuda"), {"layer_norm float32 1000": "torch"}, arguments) == path
    assert choices.load_shipped_choices("NVIDIA H200", path) == {"layer_norm float32 1000": "torch"}
    assert not choices.choices_file().exists()


def test_the_commit_is_that_of_the_checkout(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    copy = tmp_path / "measuring.py"
    monkeypatch.setattr(measuring, "__file__", str(copy))
    assert measuring.source_commit() == "unknown"
    copy.write_text("")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    for command in (["init", "--quiet"], ["add", "measuring.py"], ["commit", "--quiet", "--message", "m"]):
        subprocess.run([*git, *command], check=True)
    assert re.fullmatch(r"[0-9a-f]{7,}", commit := measuring.source_commit())
    copy.write_text("# changed")
    assert measuring.source_commit() == f"{commit}+"


def test_choices_of_a_gpu_are_stored(run, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything except the measurement is tested, because there may be no GPU."""
    measured = {"reference": 3.0, "torch": 2.0, "triton": 1.0}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")
    monkeypatch.setattr(benchmark, "select_backend", lambda *_: None)
    monkeypatch.setattr(benchmark, "gemm_peak", lambda device: 1.0)
    on_cpu = benchmark.workloads
    monkeypatch.setattr(benchmark, "workloads", lambda sizes, dtype, device: on_cpu(sizes, dtype, "cpu"))

    def seconds(functions: dict, repeats: int, device: torch.device) -> dict[str, float]:
        assert (repeats, device) == (20, torch.device("cuda"))
        return {name: measured[name] for name in functions}

    monkeypatch.setattr(benchmark, "interleaved_medians", seconds)
    monkeypatch.setattr(benchmark, "peak_memory", lambda function, device: 2**20)
    assert (
        run("--device", "cuda", "--features", "2", "--batch-size", "1", "--operation", "nplr_state", "layer_norm") == 0
    )
    printed = capsys.readouterr().out
    assert printed.splitlines()[2].split()[4:] == [*available_backends(), "faster"]
    assert "64000" in printed
    assert re.search(r"nplr_state +16000 float32  forward +- +2,000\.0 ms", printed), (
        "its definition would take minutes"
    )
    assert f"for backend='auto': {choices.choices_file()}" in printed
    names = {f"layer_norm {dtype} {length}" for dtype in benchmark._DTYPES for length in choices.LENGTHS}
    names |= {f"nplr_state float32 {length}" for length in choices.LENGTHS}
    assert choices.load_choices() == {"NVIDIA H100": dict.fromkeys(names, "triton")}
    monkeypatch.setattr(
        choices.os, "replace", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied"))
    )
    assert run("--device", "cuda", "--features", "2", "--batch-size", "1", "--operation", "layer_norm") == 2
    assert "(Permission denied): set SASHIMI_CACHE to another folder" in capsys.readouterr().err


def test_rounds_are_interleaved_and_the_first_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 100, 0, 100, 0, 1, 0, 2, 0, 3, 0, 4, 0, 5, 0, 6])
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: next(clock))
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    assert measuring.interleaved_medians(functions, 3) == {"a": 3, "b": 4}
    assert calls == ["a", "b"] * 4


def test_functions_that_run_out_of_memory_have_an_infinite_time(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr(measuring, "seconds_of", lambda function, device: calls.append(function()) or calls[-1])
    functions = {"fits": lambda: 1.0, "does not": lambda: math.inf}
    assert measuring.interleaved_medians(functions, 2) == {"fits": 1.0, "does not": math.inf}
    assert calls.count(math.inf) == 1


def test_peak_memory_counts_tensors_that_exist_at_the_same_time() -> None:
    x = torch.randn(1000, 250, requires_grad=True)  # 1 MB

    def three_at_once() -> torch.Tensor:
        y = x.detach().exp()
        z = y.sin() + y  # y, its sine, the sum
        del y
        return z.cos()  # the sum and its cosine

    assert measuring.peak_memory(three_at_once) == 3 * 1_000_000
    # The result of exp is stored for its gradient, which has the same size.
    assert 2_000_000 <= measuring.peak_memory(lambda: x.exp().sum().backward()) <= 4_000_000


def test_gemm_peak_is_a_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_GEMM_SIZE", 128)
    assert 0.01 < measuring.gemm_peak() < 1e6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")
def test_a_gpu_is_measured(run, capsys: pytest.CaptureFixture) -> None:
    assert run("--device", "cuda", "--features", "8", "--batch-size", "2", "--length", "1000", "--repeats", "2") == 0
    assert "triton" in capsys.readouterr().out
    (measured,) = choices.load_choices().values()
    assert measured["diagonal_kernel float32 1000"] in choices.CANDIDATES
    assert measured["layer_norm bfloat16 1000"] in choices.CANDIDATES
