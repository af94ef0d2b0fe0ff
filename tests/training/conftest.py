"""Small recordings, a network that trains in a second, and recipes in processes of their own."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sashimi_diffusion.training.checkpoints import list_checkpoints
from sashimi_diffusion.training.config import from_tree
from sashimi_diffusion.training.diffusion_config import DiffusionConfig
from sashimi_diffusion.training.typed_yaml import apply_overrides, write_yaml

TINY = {
    "model": {
        "name": "sashimi",
        "class_conditional": True,
        "waveform_std": None,
        "d_model": 8,
        "n_layers": [0, 1],
        "pool": [4],
        "n_state": 4,
        "parameterization": "diag",
        "initialization": "lin",
        "discretization": "zoh",
        "embedding_hidden": 16,
        "embedding_dim": 16,
    },
    "data": {
        "sample_rate": 8000,
        "length": 256,
        "pattern": "{label}_{speaker}_{index}",
        "holdout": {"index": [0]},
        "normalize_rms": 0.1,
        "random_shift": 40,
        "gain_db": 3.0,
    },
    "schedule": {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
    "optimizer": {"lr": 2e-3, "warmup_steps": 2, "decay": "cosine"},
    "training": {
        "steps": 8,
        "batch_size": 4,
        "mixed_precision": "fp32",
        "cpu_threads": 1,
        "log_every": 1,
        "checkpoint_every": 4,
        "validate_every": 4,
        "trackers": [],
    },
    "sampling": {"num_samples": 2, "steps": 2},
}


class RecipeScript:
    """A script of recipes/ as people run it, without a network and without what another launcher has set."""

    def __init__(self, name: str) -> None:
        self.path = Path(__file__).resolve().parents[2] / "recipes" / name

    def start(self, *arguments: object, launch: Sequence[str] | None = None) -> subprocess.Popen:
        """By Python or, if ``launch`` gives its options, by ``accelerate launch``."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE", "LOCAL_", "RANK"))}
        environment = kept | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        launcher = [] if launch is None else ["-m", "accelerate.commands.launch", "--cpu", *launch]
        command = [sys.executable, *launcher, str(self.path), *map(str, arguments)]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def run(self, *arguments: object, launch: Sequence[str] | None = None) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        process = self.start(*arguments, launch=launch)
        out, err = process.communicate(timeout=240)
        return process.returncode, out, err

    def kill(self, run: Path, lines: int, *arguments: object, pause: float = 0.0) -> tuple[int, str]:
        """Start, and kill without warning ``pause`` seconds after the run folder has ``lines`` more figures.

        Returns:
            exit code, which is -SIGKILL if the process was still at work, and stderr.
        """
        enough = count_lines(run / "metrics.jsonl") + lines
        process = self.start(*arguments)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if (run / "config.yaml").exists() and count_lines(run / "metrics.jsonl") >= enough:
                break
            time.sleep(0.002)
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        _, err = process.communicate()
        return process.returncode, err


def count_lines(path: Path) -> int:
    return path.read_text().count("\n") if path.exists() else 0


@pytest.fixture
def recipe_script() -> type[RecipeScript]:
    """A recipe by the name of its file."""
    return RecipeScript


@pytest.fixture
def figures() -> Callable[[Path], list[dict]]:
    """A function of a run folder: everything of metrics.jsonl but the times."""

    def read(run: Path) -> list[dict]:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        return [{key: value for key, value in line.items() if not key.startswith("seconds")} for line in lines]

    return read


@pytest.fixture
def assert_same_run(figures: Callable[[Path], list[dict]]) -> Callable[[Path, Path], None]:
    """A function of two run folders: they have the same figures and end with the same weights."""

    def check(run: Path, other: Path) -> None:
        assert figures(run) == figures(other)
        last = list_checkpoints(other)[-1].relative_to(other)
        for name in ("model.safetensors", "ema.safetensors"):
            assert (run / last / name).read_bytes() == (other / last / name).read_bytes()

    return check


@pytest.fixture(scope="session")
def recordings(tmp_path_factory) -> Path:
    """Twelve short tones: two classes, two speakers, three takes; some shorter and some longer than a window."""
    folder = tmp_path_factory.mktemp("recordings")
    rng = np.random.default_rng(0)
    for number in range(12):
        label, speaker, index = number % 2, "ab"[number // 2 % 2], number // 4
        time = np.arange(180 + 40 * number) / 8000
        tone = 0.3 * np.sin(2 * np.pi * (400 + 300 * label) * time) + 0.01 * rng.standard_normal(len(time))
        soundfile.write(folder / f"{label}_{speaker}_{index}.wav", tone, 8000)
    return folder


@pytest.fixture
def tiny(recordings, tmp_path):
    """A config tree for the tiny network with overrides, its run folder in tmp_path."""

    def make(*overrides: str) -> dict:
        tree = copy.deepcopy(TINY)
        tree["output_dir"] = str(tmp_path / "run")
        tree["data"] |= {"path": str(recordings), "cache_dir": str(recordings.parent / "cache")}
        return apply_overrides(tree, overrides)

    return make


@pytest.fixture
def tiny_config(tiny):
    """The same as a config."""
    return lambda *overrides: from_tree(DiffusionConfig, tiny(*overrides))


@pytest.fixture
def tiny_file(tiny, tmp_path) -> Path:
    """The same as a YAML file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(write_yaml(tiny()))
    return path
