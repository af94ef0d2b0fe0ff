"""Fixtures of the evaluation tests: audio clips, an empty cache folder and a classifier with random weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sashimi_evaluation.classifiers import SmallClassifier

RATE = 8000


@pytest.fixture(autouse=True)
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Set an empty cache folder in the environment and return it."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("SASHIMI_CACHE", str(folder))
    return folder


@pytest.fixture(scope="session")
def classifier_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save a small classifier whose random weights are large enough to predict different digits for different clips."""
    torch.manual_seed(0)
    model = SmallClassifier(channels=(4, 4, 8, 16))
    model.classifier.weight.data *= 100
    folder = tmp_path_factory.mktemp("classifier") / "random"
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def write_digits() -> Callable[..., Path]:
    """Return ``write_digits(folder, per_class, seed)``, which writes harmonic tones, one pitch per digit."""

    def write(folder: Path, per_class: int, seed: int = 0, rate: int = RATE, noise: float = 0.02) -> Path:
        random = np.random.default_rng(seed)
        time = np.arange(rate // 2) / rate
        for digit in range(10):
            (folder / str(digit)).mkdir(parents=True, exist_ok=True)
            for index in range(per_class):
                pitch = 100 * 1.2**digit * random.uniform(0.97, 1.03)
                tone = sum(np.sin(2 * np.pi * pitch * k * time + random.uniform(0, 6)) / k for k in (1, 2, 3))
                clip = 0.2 * tone + noise * random.standard_normal(len(time))
                soundfile.write(folder / str(digit) / f"{index}.wav", clip, rate)
        return folder

    return write
