"""Test of the benchmark of the engines: it runs and prints its table; times are not asserted."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("network", ["--unet", pytest.param("--no-unet", marks=pytest.mark.slow)])
def test_it_prints_its_table(network: str) -> None:
    pytest.importorskip("numba", reason="numba is not installed (pip install numba)")
    sizes = ["--d-model", "16", "--n-layers", "1", "--samples", "4", "--prefix", "64", "--streams", "1", "2"]
    sizes += ["--weights", "float32", "int16", "--rounds", "1"]  # numba compiles the step for each format
    command = [sys.executable, "-m", "sashimi_diffusion.benchmarks.generation", network, *sizes]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for text in (
        "parameters",
        "GFLOP/s",
        "1 streams",
        "2 streams",
        "float32",
        "int16",
        "times",
        "cores",
        "prefix of 64 samples",
    ):
        assert text in done.stdout
