"""Bootstrap intervals: how often they hold the truth, and what they do to biased figures."""

import numpy as np
import pytest

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.metrics.intervals import Interval, bootstrap, interval_about


def test_the_interval_of_a_mean_holds_the_truth_as_often_as_it_says():
    random = np.random.default_rng(0)
    sets = [random.normal(size=50) + 3 for _ in range(300)]
    intervals = [bootstrap(np.mean, each, resamples=100, seed=number, level=0.9) for number, each in enumerate(sets)]
    assert 0.84 < np.mean([interval.low < 3 < interval.high for interval in intervals]) < 0.94


def test_the_interval_of_a_biased_figure_holds_it():
    """Resamples hold about 63 of 100 clips, so that the raw quantiles of their number would lie far below 100."""
    found = bootstrap(lambda rows: len(np.unique(rows)), np.arange(100))
    assert 90 < found.low < 100 < found.high < 110


def test_every_array_is_resampled_on_its_own():
    values = np.arange(50.0)
    assert bootstrap(lambda a, b: float(np.abs(a - b).max()), values, values).high > 0  # together it would be (0, 0)
    assert bootstrap(lambda a, b: len(a) + len(b), values, values[:7]) == Interval(57, 57)


def test_rows_stay_whole():
    rows = np.stack([np.arange(30), np.arange(30)], axis=1)
    assert bootstrap(lambda each: float(np.abs(each[:, 0] - each[:, 1]).max()), rows) == Interval(0, 0)


def test_the_seed_decides():
    values = np.random.default_rng(0).normal(size=30)
    assert bootstrap(np.mean, values) == bootstrap(np.mean, values)
    assert bootstrap(np.mean, values) != bootstrap(np.mean, values, seed=1)


def test_quantiles_about_the_mean():
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
