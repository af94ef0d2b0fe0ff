"""The autoregressive recipe as people run it: through accelerate, on two processes, killed and resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from sashimi_diffusion.pipelines import SashimiAutoregressivePipeline
from sashimi_diffusion.training import checkpoints
from sashimi_diffusion.training.autoregressive_config import AutoregressiveConfig
from sashimi_diffusion.training.autoregressive_task import AutoregressiveTask
from sashimi_diffusion.training.config import from_tree
from sashimi_diffusion.training.loop import train
from sashimi_diffusion.training.typed_yaml import apply_overrides, write_yaml

RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "train_autoregressive_sashimi.py"
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--cpu"]
KILLED = ["training.steps=100", "training.checkpoint_every=5", "training.validate_every=20", "training.sample_every=40"]


@pytest.fixture
def tree(tiny: Callable[..., dict]) -> dict:
    """A config tree of a tiny network, trained as the tiny denoiser is, its run folder in tmp_path."""
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
    """The same as a YAML file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(write_yaml(tree))
    return path


@pytest.fixture
def train_here(tree: dict, tmp_path: Path) -> Callable[..., Path]:
    """Train in this process, without a stop: a function of the overrides that returns the run folder."""

    def call(*overrides: str) -> Path:
        config = from_tree(
            AutoregressiveConfig, apply_overrides(tree, [*overrides, f"output_dir={tmp_path / 'whole'}"])
        )
        return train(AutoregressiveTask, config)

    return call


def start(launcher: list[str], *arguments: object) -> subprocess.Popen:
    """Without a network, and without what another launcher set."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE", "LOCAL_", "RANK"))}
    environment = kept | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [*launcher, str(RECIPE), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(launcher: list[str], *arguments: object) -> str:
    """Stdout of a run that must succeed."""
    process = start(launcher, *arguments)
    out, err = process.communicate(timeout=240)
    assert process.returncode == 0, err
    return out


def figures(folder: Path) -> list[dict]:
    """Everything of metrics.jsonl but the times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith("seconds")} for line in lines]


def check_folder(folder: Path, steps: int, out: str) -> None:
    """The run is complete: figures, test bits in the file and on the screen, samples, a pipeline that loads."""
    lines = figures(folder)
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


def test_accelerate_launch(file: Path, train_here: Callable[..., Path], tmp_path: Path) -> None:
    folder = tmp_path / "launched"
    out = run(LAUNCH, "--config", file, f"output_dir={folder}")
    assert "4 examples per step on 1 x cpu" in out
    check_folder(folder, 8, out)
    assert figures(folder) == figures(train_here())


@pytest.mark.slow
def test_two_processes_make_the_run_of_one(file: Path, train_here: Callable[..., Path], tmp_path: Path) -> None:
    """Two processes with half the batch each; all recordings fill the window, so each half weighs the same."""
    folder, full = tmp_path / "two", "data.length=128"
    out = run(
        [*LAUNCH, "--num_processes", "2"], "--config", file, f"output_dir={folder}", "training.batch_size=2", full
    )
    assert "4 examples per step on 2 x cpu" in out
    check_folder(folder, 8, out)
    for one, two in zip(figures(train_here(full)), figures(folder), strict=True):
        assert one.keys() == two.keys()
        assert np.allclose(list(one.values()), list(two.values()), rtol=1e-3)


def kill_when_metrics_grow(file: Path, folder: Path, lines: int) -> None:
    """Start or resume, and kill without warning as soon as there are so many more figures."""
    metrics = folder / "metrics.jsonl"
    enough = lines + (metrics.read_text().count("\n") if metrics.exists() else 0)
    process = start([sys.executable], "--config", file, "--resume", *KILLED, f"output_dir={folder}")
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and metrics.read_text().count("\n") >= enough:
            break
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    _, err = process.communicate()
    assert process.returncode == -signal.SIGKILL, err


@pytest.mark.slow
def test_kill_9_and_resume_gives_the_uninterrupted_run(
    file: Path, train_here: Callable[..., Path], tmp_path: Path
) -> None:
    whole, killed = train_here(*KILLED), tmp_path / "killed"
    for lines in (3, 13):  # before there is a checkpoint, and between two
        kill_when_metrics_grow(file, killed, lines)
        SashimiAutoregressivePipeline.from_pretrained(killed / "pipeline")
    out = run([sys.executable], "--config", file, "--resume", *KILLED, f"output_dir={killed}")
    assert "resumed from" in out
    assert figures(killed) == figures(whole)
    last = checkpoints.list_checkpoints(whole)[-1].relative_to(whole)
    for name in ("model.safetensors", "ema.safetensors"):
        assert (killed / last / name).read_bytes() == (whole / last / name).read_bytes()
