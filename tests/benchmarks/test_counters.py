"""Tests of the counts of whole networks: their targets on a GPU, and the command that prints them."""

import functools
import os
import sys

import pytest

pytest.importorskip("triton", reason="the triton package is not installed")

from sashimi_diffusion.benchmarks.counters import (
    BATCH_SIZE,
    LENGTH,
    count_forward,
    count_recurrent_steps,
    count_training_step,
    denoiser,
    floor_bytes,
    main,
)
from sashimi_kernels.counters import Counts

NETWORKS = [("nplr", 64), ("diag", 64), ("nplr", 128), ("diag", 128)]
MOST_LAUNCHES = {"forward": 250, "training": 1500}
LARGEST_RATIO = 2.5


@functools.cache
def counts(run: str, parameterization: str, d_model: int) -> Counts:
    count = {"forward": count_forward, "training": count_training_step}[run]
    return count(denoiser(d_model, parameterization), BATCH_SIZE)


every_run = pytest.mark.parametrize(
    ("run", "parameterization", "d_model"), [(run, *network) for run in MOST_LAUNCHES for network in NETWORKS]
)


@every_run
def test_few_launches(run: str, parameterization: str, d_model: int) -> None:
    assert counts(run, parameterization, d_model).launches <= MOST_LAUNCHES[run]


@every_run
def test_the_host_never_waits_for_the_device(run: str, parameterization: str, d_model: int) -> None:
    found = counts(run, parameterization, d_model)
    assert found.synchronizations == []
    assert found.transfers == []


@every_run
def test_little_memory_traffic(run: str, parameterization: str, d_model: int) -> None:
    config = denoiser(d_model, parameterization).config
    floor = floor_bytes(config, BATCH_SIZE, LENGTH, training=run == "training")
    assert counts(run, parameterization, d_model).bytes <= LARGEST_RATIO * floor


def test_the_floor_of_a_small_network() -> None:
    config = denoiser(64, "diag").config
    # Blocks times features times samples: 6 on both ways at two rates, 6 in the center.
    elements = 12 * 64 * 160 + 12 * 128 * 40 + 6 * 256 * 10
    assert floor_bytes(config, 3, 160, training=False) == 9 * 2 * 3 * elements
    assert floor_bytes(config, 3, 160, training=True) == 3 * 9 * 2 * 3 * elements


def test_a_training_step_writes_all_parameters() -> None:
    model = denoiser(64, "diag")
    parameters = 4 * sum(parameter.numel() for parameter in model.parameters())
    operations = counts("training", "diag", 64).operations
    assert operations["aten._foreach_norm"].bytes > parameters  # reads the gradients
    # Reads and writes weights, gradients and two averages.
    assert 8 * parameters < operations["aten._fused_adamw"].bytes < 8.1 * parameters
    assert operations["aten._fused_adamw"].calls == 3  # the parameter groups


def test_recurrent_steps_do_not_wait_for_the_device() -> None:
    found, steps = count_recurrent_steps(64, "nplr", 2)
    assert steps == 16
    assert (found.synchronizations, found.transfers) == ([], [])
    assert found.launches > 16 * 18  # of the 18 S4 layers of the raw rate


def run_command(monkeypatch: pytest.MonkeyPatch, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", ["counters", *options])
    return main()


def test_the_command_prints_its_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SASHIMI_KERNELS", "torch")
    options = ("--d-model", "64", "--parameterization", "diag", "--by-operation", "2", "--by-line", "2")
    assert run_command(monkeypatch, *options) == 0
    printed = capsys.readouterr().out
    rows = ("forward, d 64, diag, batch 1", f"training step, d 64, diag, batch {BATCH_SIZE}", "recurrent step, d 64")
    for text in (
        "| launches | GB | floor, GB | ratio |",
        "| operation | calls |",
        "| line | calls |",
        *(f"| {row}" for row in rows),
    ):
        assert text in printed
    assert os.environ["SASHIMI_KERNELS"] == "torch"  # the command's own choice ends with the counts


def test_an_error_of_the_command_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(monkeypatch, "--d-model", "none") == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
