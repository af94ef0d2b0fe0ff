"""Differences of metrics between two sets of clips, with confidence intervals."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sashimi_evaluation.metrics.intervals import Interval, interval_about
from sashimi_evaluation.metrics.metric import Difference, Metric


def with_differences(metrics: Sequence[Metric], held_out: Sequence[Metric], seed: int = 0) -> list[Metric]:
    """Return the metrics of a set with their differences from those of the held-out recordings.

    A metric without a value or an interval in one of the sets has no difference.

    Args:
        metrics: metrics of the set.
        held_out: metrics of the held-out recordings.
        seed: seed of :func:`difference_interval`.
    """
    known = {metric.key: metric for metric in held_out}
    return [replace(metric, difference=_difference(metric, known.get(metric.key), seed)) for metric in metrics]


def difference_interval(
    value: float, interval: Interval, other: float, other_interval: Interval, seed: int = 0
) -> Interval:
    """Return the 95 % confidence interval of ``value - other``, metrics of two independent samples.

    If both intervals come from a bootstrap with the same number of resamples, it is a bootstrap of both sets: a
    resampled value of the one minus a resampled value of the other, in random pairs, because both sets were resampled
    with the same seed. Otherwise the distances from the values to the ends of their intervals are combined: sqrt(a² +
    b²). For two proportions with Wilson's intervals this is the score interval of Newcombe 1998 (method 10, "Interval
    estimation for the difference between independent proportions").

    Distances from a reference share that reference, so the true interval of their difference is narrower than this one.

    Args:
        value: metric of one set.
        interval: its 95 % interval.
        other: metric of the other set.
        other_interval: its 95 % interval.
        seed: seed of the pairs.
    """
    mine, others = interval.deviations, other_interval.deviations
    if mine is not None and others is not None and len(mine) == len(others):
        return interval_about(value - other, mine - np.random.default_rng(seed).permutation(others))
    low = math.hypot(value - interval.low, other_interval.high - other)
    high = math.hypot(interval.high - value, other - other_interval.low)
    return Interval(value - other - low, value - other + high)


def _difference(metric: Metric, held_out: Metric | None, seed: int) -> Difference | None:
    if held_out is None or metric.interval is None or held_out.interval is None:
        return None
    if metric.value is None or held_out.value is None:
        return None
    interval = difference_interval(metric.value, metric.interval, held_out.value, held_out.interval, seed)
    return Difference(metric.value - held_out.value, interval)
