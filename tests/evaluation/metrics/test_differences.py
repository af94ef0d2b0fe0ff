"""Tests of the intervals of differences between two independent sets."""

import numpy as np
import pytest

from sashimi_evaluation.metrics.differences import difference_interval, with_differences
from sashimi_evaluation.metrics.intervals import Interval, Resampling, wilson_interval
from sashimi_evaluation.metrics.metric import Metric, mean_metric


def test_the_difference_of_means_has_the_width_of_two_independent_samples():
    random = np.random.default_rng(0)
    first, second = random.normal(1, 2, 300), random.normal(0.5, 3, 200)
    resampling = Resampling(resamples=4000)
    (metric,) = with_differences(
        [mean_metric("level", "Level", first, resampling)], [mean_metric("level", "Level", second, resampling)]
    )
    difference = metric.difference
    assert difference.value == pytest.approx(first.mean() - second.mean())
    half = 1.96 * np.sqrt(first.var() / 300 + second.var() / 200)
    assert difference.interval.low == pytest.approx(difference.value - half, abs=0.05 * half)
    assert difference.interval.high == pytest.approx(difference.value + half, abs=0.05 * half)


def test_sets_in_the_same_order_are_not_taken_for_pairs():
    values = np.random.default_rng(0).normal(size=300)
    resampling = Resampling(resamples=2000)
    same = mean_metric("level", "Level", values, resampling)
    (metric,) = with_differences([same], [same])
    width = same.interval.high - same.interval.low
    assert metric.difference.value == 0
    assert metric.difference.interval.high - metric.difference.interval.low == pytest.approx(2**0.5 * width, rel=0.05)


def test_the_score_interval_of_two_proportions():
    """Newcombe 1998, table II, method 10: examples (a), 56 of 70 and 48 of 80, and (h), 10 of 10 and 0 of 10."""
    first, second = wilson_interval(56, 70), wilson_interval(48, 80)
    interval = difference_interval(0.8, first, 0.6, second)
    assert (interval.low, interval.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    interval = difference_interval(1, wilson_interval(10, 10), 0, wilson_interval(0, 10))
    assert (interval.low, interval.high) == pytest.approx((0.6075, 1.0), abs=5e-5)


def test_metrics_without_a_value_an_interval_or_a_counterpart_have_no_difference():
    known = Metric("a", "A", 1.0, Interval(0, 2))
    for mine, other in [
        (known, Metric("b", "B", 1.0, Interval(0, 2))),
        (known, Metric("a", "A", 1.0)),
        (known, Metric("a", "A", None, Interval(0, 2))),
        (Metric("a", "A", 1.0), known),
        (Metric("a", "A", None, note="too few"), known),
    ]:
        assert with_differences([mine], [other]) == [mine]
    assert with_differences([known], [known])[0].difference.interval == Interval(-(2**0.5), 2**0.5)
