"""Fixtures for the training tests: short recordings and the configuration of a tiny network."""

import copy
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sashimi_diffusion.training.config import from_tree
from sashimi_diffusion.training.diffusion.config import DiffusionConfig
from sashimi_diffusion.training.yaml_files import apply_overrides, write_yaml

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


def write_recordings(folder: Path) -> Path:
    """Write twelve tones of 2 classes, 2 speakers and 3 takes; some are shorter and some longer than a window."""
    rng = np.random.default_rng(0)
    for number in range(12):
        label, speaker, index = number % 2, "ab"[number // 2 % 2], number // 4
        time = np.arange(180 + 40 * number) / 8000
        tone = 0.3 * np.sin(2 * np.pi * (400 + 300 * label) * time) + 0.01 * rng.standard_normal(len(time))
        soundfile.write(folder / f"{label}_{speaker}_{index}.wav", tone, 8000)
    return folder


@pytest.fixture(scope="session")
def recordings(tmp_path_factory) -> Path:
    """Return a folder of recordings, see :func:`write_recordings`."""
    return write_recordings(tmp_path_factory.mktemp("recordings"))


@pytest.fixture
def tiny(recordings, tmp_path):
    """Return a function from overrides to the config tree of the tiny network, with its run folder in tmp_path."""

    def make(*overrides: str) -> dict:
        tree = copy.deepcopy(TINY)
        tree["output_dir"] = str(tmp_path / "run")
        tree["data"] |= {"path": str(recordings), "cache_dir": str(recordings.parent / "cache")}
        return apply_overrides(tree, overrides)

    return make


@pytest.fixture
def tiny_config(tiny):
    """Return a function from overrides to the config of the tiny network."""
    return lambda *overrides: from_tree(DiffusionConfig, tiny(*overrides))


@pytest.fixture
def tiny_file(tiny, tmp_path) -> Path:
    """Write the config of the tiny network to a YAML file and return its path."""
    path = tmp_path / "tiny.yaml"
    path.write_text(write_yaml(tiny()))
    return path
