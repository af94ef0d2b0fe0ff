"""Tests of the autoregressive recipe as a script: one process, two processes, killed and resumed."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sashimi_diffusion.pipelines import SashimiAutoregressivePipeline
from sashimi_diffusion.training.autoregressive.config import AutoregressiveConfig
from sashimi_diffusion.training.autoregressive.task import AutoregressiveTask
from sashimi_diffusion.training.config import from_tree
from sashimi_diffusion.training.loop import train
from sashimi_diffusion.training.yaml_files import apply_overrides, write_yaml

KILLED = ["training.steps=100", "training.checkpoint_every=5", "training.validate_every=20", "training.sample_every=40"]
MetricsOf = Callable[[Path], list[dict]]


@pytest.fixture
def script(recipe_script: Callable[[str], Any]) -> Any:
    return recipe_script("train_autoregressive_sashimi.py")


@pytest.fixture
def tree(tiny: Callable[..., dict]) -> dict:
    """Return the config tree of a tiny network, with the settings of the tiny denoiser."""
    shared = tiny()
    data = {name: shared["data"][name] for name in ("path", "cache_dir", "sample_rate", "length", "pattern")}
    return {
        "output_dir": shared["output_dir"],
        "model": {"name": "sashimi", "d_model": 8, "n_layers": 1, "pool": [4], "n_state": 4},
        "data": data | {"splits": [0.5, 0.25, 0.25]},
        "optimizer": shared["optimizer"] | {"lr": 4e-3},
        "training": shared["training"],
        "sampling": {"num_samples": 1, "seconds": 0.02, "engine": "eager"},
    }


@pytest.fixture
def file(tree: dict, tmp_path: Path) -> Path:
    """Write the config tree to a YAML file and return its path."""
    path = tmp_path / "tiny.yaml"
    path.write_text(write_yaml(tree))
    return path


@pytest.fixture
def train_here(tree: dict, tmp_path: Path) -> Callable[..., Path]:
    """Return a function that trains in this process without interruption and returns the run folder."""

    def call(*overrides: str) -> Path:
        config = from_tree(
            AutoregressiveConfig, apply_overrides(tree, [*overrides, f"output_dir={tmp_path / 'whole'}"])
        )
        return train(AutoregressiveTask, config)

    return call


def check_folder(folder: Path, lines: list[dict], steps: int, out: str) -> None:
    """Assert that the run has all metrics, prints its test bits, and has samples and a pipeline that loads."""
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, steps + 1))
    assert [line["step"] for line in lines if "validation_bits" in line] == [steps // 2, steps]
    last = lines[-1]
    assert last.keys() == {"step", "test_bits_chunks", "test_bits"}
    assert 4 < last["test_bits"] < 12
    assert f"test bits {last['test_bits']:.5f}" in out
    assert out.count(f"done: {steps} steps") == 1
    assert (folder / f"samples/step-{steps:06d}/00.wav").exists()
    pipeline = SashimiAutoregressivePipeline.from_pretrained(folder / "pipeline")
    assert pipeline(audio_length_in_s=0.01, engine="eager").audios.shape == (1, 1, 80)


def test_accelerate_launch(
    script: Any, metrics_of: MetricsOf, file: Path, train_here: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tmp_path / "launched"
    code, out, err = script.run("--config", file, f"output_dir={folder}", launcher=script.ACCELERATE)
    assert code == 0, err
    assert "4 examples per step on 1 x cpu" in out
    check_folder(folder, metrics_of(folder), 8, out)
    assert metrics_of(folder) == metrics_of(train_here())


@pytest.mark.slow
def test_two_processes_give_the_run_of_one(
    script: Any, metrics_of: MetricsOf, file: Path, train_here: Callable[..., Path], tmp_path: Path
) -> None:
    """Each process has half of the batch; every sample has the same weight in recordings of any length."""
    folder = tmp_path / "two"
    arguments = ["--config", file, f"output_dir={folder}", "training.batch_size=2"]
    code, out, err = script.run(*arguments, launcher=script.TORCHRUN)
    assert code == 0, err
    assert "4 examples per step on 2 x cpu" in out
    check_folder(folder, metrics_of(folder), 8, out)
    for one, two in zip(metrics_of(train_here()), metrics_of(folder), strict=True):
        assert one.keys() == two.keys()
        assert np.allclose(list(one.values()), list(two.values()), rtol=1e-3)


@pytest.mark.slow
def test_kill_9_and_resume_gives_the_uninterrupted_run(
    script: Any,
    assert_same_run: Callable[[Path, Path], None],
    file: Path,
    train_here: Callable[..., Path],
    tmp_path: Path,
) -> None:
    whole, killed = train_here(*KILLED), tmp_path / "killed"
    arguments = ["--config", file, "--resume", *KILLED, f"output_dir={killed}"]
    for lines in (3, 13):  # before the first checkpoint, and between two checkpoints
        code, err = script.kill(killed, lines, *arguments)
        assert code == -signal.SIGKILL, err
        if (killed / "pipeline").exists():
            SashimiAutoregressivePipeline.from_pretrained(killed / "pipeline")
    code, out, err = script.run(*arguments)
    assert code == 0, err
    assert "resumed from" in out
    assert_same_run(killed, whole)
