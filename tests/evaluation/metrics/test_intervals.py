"""Tests of bootstrap and Wilson intervals: coverage, bias correction and validation."""

import numpy as np
import pytest

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.metrics.intervals import Interval, bootstrap, interval_about, wilson_interval


def test_the_interval_of_a_mean_has_its_nominal_coverage():
    random = np.random.default_rng(0)
    sets = [random.normal(size=50) + 3 for _ in range(300)]
    intervals = [bootstrap(np.mean, each, resamples=100, seed=number, level=0.9) for number, each in enumerate(sets)]
    assert 0.84 < np.mean([interval.low < 3 < interval.high for interval in intervals]) < 0.94


def test_the_interval_of_a_biased_statistic_contains_its_value():
    """Resamples contain about 63 of 100 distinct values, so uncorrected quantiles of the count lie far below 100."""
    found = bootstrap(lambda rows: len(np.unique(rows)), np.arange(100))
    assert 90 < found.low < 100 < found.high < 110


def test_arrays_are_resampled_independently():
    values = np.arange(50.0)
    # If both arrays were resampled together, the interval would be (0, 0).
    assert bootstrap(lambda a, b: float(np.abs(a - b).max()), values, values).high > 0
    assert bootstrap(lambda a, b: len(a) + len(b), values, values[:7]) == Interval(57, 57)


def test_rows_are_resampled_as_a_whole():
    rows = np.stack([np.arange(30), np.arange(30)], axis=1)
    assert bootstrap(lambda each: float(np.abs(each[:, 0] - each[:, 1]).max()), rows) == Interval(0, 0)


def test_the_seed_determines_the_interval():
    values = np.random.default_rng(0).normal(size=30)
    assert bootstrap(np.mean, values) == bootstrap(np.mean, values)
    assert bootstrap(np.mean, values) != bootstrap(np.mean, values, seed=1)


def test_interval_from_quantiles_about_the_mean():
    draws = np.arange(101.0)  # mean 50
    assert interval_about(10, draws, level=0.9) == Interval(pytest.approx(10 - 45), pytest.approx(10 + 45))


@pytest.mark.parametrize(
    ("arrays", "options", "complaint"),
    [
        ([], {}, "at least one row"),
        ([np.ones(3), np.ones(0)], {}, "at least one row"),
        ([1.0], {}, "at least one row"),
        ([np.ones(3)], {"resamples": 1}, "resamples must be at least 2, got 1"),
        ([np.ones(3)], {"level": 95}, "level must lie between 0 and 1"),
    ],
)
def test_wrong_input(arrays: list, options: dict, complaint: str):
    with pytest.raises(UserError, match=complaint):
        bootstrap(lambda *_: 0.0, *arrays, **options)


def test_wilson_interval():
    none, half, all_of_them = (wilson_interval(successes, 10) for successes in (0, 5, 10))
    assert none.low == pytest.approx(0, abs=1e-15)
    assert none.high == pytest.approx(1.959964**2 / (10 + 1.959964**2), rel=1e-6)
    assert (half.low, half.high) == (pytest.approx(0.2366, abs=5e-5), pytest.approx(0.7634, abs=5e-5))
    assert (all_of_them.low, all_of_them.high) == (pytest.approx(1 - none.high), pytest.approx(1))
    assert wilson_interval(5, 10, level=0.5).low > half.low


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 5), (6, 5)])
def test_impossible_counts(successes: int, n: int):
    with pytest.raises(UserError, match=f"got {successes} of {n}"):
        wilson_interval(successes, n)
    with pytest.raises(UserError, match="level"):
        wilson_interval(1, 5, level=95)


@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_wilson_interval_agrees_with_scipy(level: float):
    stats = pytest.importorskip("scipy.stats", reason="needs SciPy (the extra eval)")
    for successes, n in [(0, 1), (1, 1), (3, 7), (50, 50), (0, 2048), (1999, 2048)]:
        expected = stats.binomtest(successes, n).proportion_ci(level, method="wilson")
        found = wilson_interval(successes, n, level)
        np.testing.assert_allclose([found.low, found.high], [expected.low, expected.high], rtol=0, atol=1e-12)


def test_clipped_ends():
    assert Interval(-0.5, 0.5).clipped(0, 1) == Interval(0, 0.5)
    assert Interval(0.5, 1.5).clipped(0, 1) == Interval(0.5, 1)
