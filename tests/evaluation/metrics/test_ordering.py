"""Tests that every metric gets worse as noise is added to real recordings."""

from pathlib import Path

import numpy as np
import pytest

from sashimi_diffusion.data.audio import read_audio, write_audio
from sashimi_evaluation.classifiers import load_classifier
from sashimi_evaluation.clips import ClipFolder, open_clips
from sashimi_evaluation.evaluation import EvaluatedSet, evaluate
from sashimi_evaluation.extraction import Settings, extract_features
from sashimi_evaluation.metrics.intervals import Resampling

PATTERN = "{label}_{speaker}_{index}"
RATE = 8000
RATIOS = (20, 10, 0)  # signal to noise, in dB
LOWER = ("fid", "kid", "kad", "am", "ndb", "jsd")
HIGHER = ("density", "coverage", "is", "mcs", "accuracy", "confidence")


def with_noise(clips: ClipFolder, folder: Path, ratio: float | None) -> ClipFolder:
    """Write the clips with added white noise, or only white noise of their level if ``ratio`` is None."""
    random = np.random.default_rng(0)
    folder.mkdir()
    for file in clips.files:
        clip = read_audio(file)
        level = np.sqrt(np.mean(np.square(clip)))
        noise = level * random.standard_normal(len(clip))
        write_audio(folder / f"{file.stem}.wav", noise if ratio is None else clip + noise * 10 ** (-ratio / 20), RATE)
    return open_clips(folder, pattern=PATTERN)


@pytest.fixture(scope="module")
def evaluated(shared_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[EvaluatedSet]:
    """Return the results of real clips, of clips with noise at 20, 10 and 0 dB, and of noise alone."""
    folder = tmp_path_factory.mktemp("ordering")
    real = open_clips(shared_data / "fsdd", "real", PATTERN, {"index": [str(i) for i in range(5)]})
    reference = open_clips(shared_data / "fsdd", "reference", PATTERN, {"index": [str(i) for i in range(10, 20)]})
    noisy = [with_noise(real, folder / f"{ratio} dB", ratio) for ratio in RATIOS]
    sets = [real, *noisy, with_noise(real, folder / "noise", None)]
    settings = Settings(resampling=Resampling(resamples=100), cache_dir=folder / "cache")
    return evaluate(extract_features(sets, reference, None, load_classifier(), settings=settings)).sets


@pytest.mark.parametrize("key", [*LOWER, *HIGHER])
def test_more_noise_is_worse(evaluated: list[EvaluatedSet], key: str) -> None:
    metrics = [next(metric for metric in each.metrics if metric.key == key) for each in evaluated]
    values = [metric.value for metric in metrics]
    worse = values if key in LOWER else values[::-1]
    assert worse == sorted(worse), values
    first, last = metrics[0].interval, metrics[-1].interval
    assert first.high < last.low if key in LOWER else first.low > last.high


def test_precision_and_recall_are_lower_for_noise_than_for_speech(evaluated: list[EvaluatedSet]) -> None:
    for key in ("precision", "recall"):
        first, *_, last = (next(metric for metric in each.metrics if metric.key == key) for each in evaluated)
        assert first.interval.low > last.interval.high, key
