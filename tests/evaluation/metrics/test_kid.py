"""Tests of the kernel distances against a double loop."""

import importlib
import itertools

import numpy as np
import pytest

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.metrics import distances
from sashimi_evaluation.metrics.intervals import interval_about
from sashimi_evaluation.metrics.kid import kernel_distance, kernel_distance_with_interval


def median_distance(features: np.ndarray) -> float:
    return float(np.median([np.linalg.norm(x - y) for x, y in itertools.combinations(features, 2)]))


def by_hand(a: np.ndarray, b: np.ndarray, kernel: str, rows=None, columns=None, sigma: float | None = None) -> float:
    """Return Gretton's unbiased estimate; clips are given by index, and pairs of a clip with itself are excluded."""
    sigma = sigma or median_distance(a)

    def value(x: np.ndarray, y: np.ndarray) -> float:
        if kernel == "polynomial":
            return (x @ y / len(x) + 1) ** 3
        return np.exp(-np.sum((x - y) ** 2) / (2 * sigma**2))

    rows = range(len(a)) if rows is None else rows
    columns = range(len(b)) if columns is None else columns
    within_a = [value(a[i], a[j]) for i in rows for j in rows if i != j]
    within_b = [value(b[i], b[j]) for i in columns for j in columns if i != j]
    between = [value(a[i], b[j]) for i in rows for j in columns]
    return np.mean(within_a) + np.mean(within_b) - 2 * np.mean(between)


def two_sets(shift: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    return random.normal(size=(13, 6)), random.normal(size=(9, 6)) + shift


@pytest.mark.parametrize("kernel", ["polynomial", "rbf"])
@pytest.mark.parametrize("entries", [2**23, 30])
def test_distances_agree_with_the_definition_for_every_block_size(monkeypatch, kernel: str, entries: int):
    monkeypatch.setattr(distances, "_BLOCK_ENTRIES", entries)
    a, b = two_sets()
    assert kernel_distance(a, b, kernel) == pytest.approx(by_hand(a, b, kernel), rel=1e-10)


@pytest.mark.parametrize("kernel", ["polynomial", "rbf"])
def test_the_interval_agrees_with_resampling_the_clips(kernel: str):
    a, b = two_sets()
    random = np.random.default_rng(4)
    rows = [random.integers(len(a), size=len(a)) for _ in range(25)]
    columns = [random.integers(len(b), size=len(b)) for _ in range(25)]
    sigma = median_distance(a)
    draws = [by_hand(a, b, kernel, *chosen, sigma) for chosen in zip(rows, columns, strict=True)]
    expected = interval_about(by_hand(a, b, kernel), np.asarray(draws), level=0.9)
    value, found = kernel_distance_with_interval(a, b, kernel, resamples=25, seed=4, level=0.9)
    np.testing.assert_allclose([found.low, found.high], [expected.low, expected.high], rtol=1e-9)
    assert value == pytest.approx(kernel_distance(a, b, kernel), rel=1e-9)


@pytest.mark.parametrize("kernel", ["polynomial", "rbf"])
def test_sets_of_one_distribution_are_at_zero_on_average(kernel: str):
    random = np.random.default_rng(0)
    values = [kernel_distance(random.normal(size=(12, 3)), random.normal(size=(7, 3)), kernel) for _ in range(500)]
    assert min(values) < 0
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values))


def test_the_effect_of_the_scale_of_the_features():
    a, b = two_sets()
    assert kernel_distance(a * 1000, b * 1000, "rbf") == pytest.approx(kernel_distance(a, b, "rbf"), rel=1e-9)
    growth = kernel_distance(a * 2000, b * 2000) / kernel_distance(a * 1000, b * 1000)
    assert growth == pytest.approx(2**6, rel=1e-3)


def test_the_bandwidth_of_a_large_reference(monkeypatch):
    # The package may export a function with the name of the module, so look the module up by its full name.
    monkeypatch.setattr(importlib.import_module(kernel_distance.__module__), "_MEDIAN_CLIPS", 4)
    a, b = two_sets()
    expected = by_hand(a, b, "rbf", sigma=median_distance(a[[0, 4, 8, 12]]))
    assert kernel_distance(a, b, "rbf") == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("kernel", ["polynomial", "rbf"])
def test_two_clips_leave_a_finite_interval(kernel: str):
    a, b = two_sets()
    _, found = kernel_distance_with_interval(a[:2], b[:2], kernel)
    assert np.isfinite([found.low, found.high]).all()


def test_wrong_input():
    a, b = two_sets()
    with pytest.raises(UserError, match="unknown kernel 'linear': expected polynomial or rbf"):
        kernel_distance(a, b, "linear")
    with pytest.raises(UserError, match="at least 2 clips, got 1"):
        kernel_distance(a, b[:1])
    with pytest.raises(UserError, match="more than half of its pairs"):
        kernel_distance(np.ones((5, 6)), b, "rbf")
    with pytest.raises(UserError, match="resamples must be at least 2"):
        kernel_distance_with_interval(a, b, resamples=1)
    with pytest.raises(UserError, match="level must lie between 0 and 1"):
        kernel_distance_with_interval(a, b, level=95)
