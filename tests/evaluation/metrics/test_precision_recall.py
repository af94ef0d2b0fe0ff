"""Tests of precision, recall, density and coverage against their definitions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.metrics import distances
from sashimi_evaluation.metrics.precision_recall import (
    PrecisionRecall,
    precision_recall_density_coverage,
    precision_recall_density_coverage_per_item,
)


def by_hand(reference: np.ndarray, samples: np.ndarray, k: int) -> PrecisionRecall:
    def radius(points: np.ndarray, index: int) -> float:
        return sorted(np.linalg.norm(points[index] - other) for other in points)[k]

    def inside(point: np.ndarray, points: np.ndarray, index: int) -> bool:
        return np.linalg.norm(point - points[index]) < radius(points, index)

    in_reference = np.array([[inside(sample, reference, i) for i in range(len(reference))] for sample in samples])
    in_samples = np.array([[inside(real, samples, j) for j in range(len(samples))] for real in reference])
    return PrecisionRecall(
        in_reference.any(1).mean(), in_samples.any(1).mean(), in_reference.sum(1).mean() / k, in_reference.any(0).mean()
    )


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("entries", [2**23, 50])
def test_metrics_agree_with_the_definition_for_every_block_size(monkeypatch, k: int, entries: int):
    monkeypatch.setattr(distances, "_BLOCK_ENTRIES", entries)
    random = np.random.default_rng(0)
    reference, samples = random.normal(size=(20, 2)), 0.7 * random.normal(size=(15, 2)) + 0.5
    expected = by_hand(reference, samples, k)
    assert 0 < expected.recall < expected.precision < 1  # different values, so that swapped metrics are noticed
    found = precision_recall_density_coverage(reference, samples, k)
    np.testing.assert_allclose(list(vars(found).values()), list(vars(expected).values()), rtol=1e-12)
    shapes = [part.shape for part in precision_recall_density_coverage_per_item(reference, samples, k)]
    assert shapes == [(15,), (20,), (15,), (20,)]


@given(st.integers(0, 10_000), st.integers(1, 5))
def test_a_set_against_itself_shuffled(seed: int, k: int):
    random = np.random.default_rng(seed)
    features = random.normal(size=(20, 3)) + 10
    found = precision_recall_density_coverage(features, random.permutation(features), k)
    assert found == PrecisionRecall(1, 1, pytest.approx(1, rel=1e-12), 1)


def test_sets_that_are_far_apart():
    features = np.random.default_rng(0).normal(size=(20, 3))
    assert precision_recall_density_coverage(features, features + 100) == PrecisionRecall(0, 0, 0, 0)


def test_a_missing_mode_lowers_recall_and_coverage_and_noise_lowers_precision():
    random = np.random.default_rng(0)
    reference = random.normal(size=(200, 3)) + 50 * (np.arange(200) % 2)[:, None]
    half = random.normal(size=(200, 3))
    dropped = precision_recall_density_coverage(reference, half)
    assert dropped.precision > 0.9
    assert 0.4 < dropped.recall <= 0.5
    assert 0.4 < dropped.coverage <= 0.5
    noisy = precision_recall_density_coverage(half, np.concatenate([half[:50], random.normal(size=(50, 3)) * 100]))
    assert 0.5 <= noisy.precision < 0.6


def test_wrong_input():
    features = np.random.default_rng(0).normal(size=(5, 3))
    with pytest.raises(UserError, match="the samples must have at least 4 clips, got 3"):
        precision_recall_density_coverage(features, features[:3], k=3)
    with pytest.raises(UserError, match="k must be at least 1, got 0"):
        precision_recall_density_coverage(features, features, k=0)
