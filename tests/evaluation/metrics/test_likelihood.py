"""Tests of bits per sample and of the likelihood window."""

import numpy as np
import pytest

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.generation.likelihood import likelihood_window
from sashimi_evaluation.metrics.intervals import Resampling
from sashimi_evaluation.metrics.likelihood import bits_per_sample, likelihood_metrics


def test_bits_of_a_uniform_model():
    uniform = -np.log(256) * np.array([100, 300])
    assert bits_per_sample(uniform, [100, 300]) == pytest.approx(8)
    assert bits_per_sample(uniform[:1], 100) == pytest.approx(8)


def test_clips_are_weighted_by_their_length():
    assert bits_per_sample(-np.log(2) * np.array([1 * 10, 3 * 30]), [10, 30]) == pytest.approx((10 + 90) / 40)


def test_the_metric_needs_the_likelihoods_of_all_clips():
    (metric,) = likelihood_metrics(np.array([2.0, 4.0]), Resampling(resamples=20))
    assert (metric.key, metric.value) == ("bits_per_sample", 3)
    assert metric.interval.low <= 3 <= metric.interval.high
    assert likelihood_metrics(np.array([2.0, np.nan]), Resampling(resamples=20)) == []


def test_the_official_window():
    scores = [9, 1, 8, 3, 7, 0, 6, 5, 4, 2]  # of 10 clips, ranks int(4.0) to int(9.5) - 1 remain
    assert likelihood_window(scores).tolist() == [2, 4, 6, 7, 8]
    assert likelihood_window(scores, 0, 0).tolist() == list(range(10))
    assert likelihood_window(scores, 0.85, 0.1).tolist() == [2]
    assert likelihood_window([5, 1, 4, 2, 3, 9, 8, 7, 6, 0], 0.3, 0.1).tolist() == [0, 2, 4, 6, 7, 8]
    assert likelihood_window(np.arange(5120)).tolist() == list(range(2048, 4864))  # the published number of clips
    # int(0.29 * 100) is 28 in floating point
    assert likelihood_window(np.arange(100), 0.29, 0.3).tolist() == list(range(29, 70))


def test_equal_likelihoods_keep_their_order():
    assert likelihood_window(np.zeros(20), 0.4, 0.05).tolist() == list(range(8, 19))


@pytest.mark.parametrize(("low", "high"), [(-0.1, 0), (0, -0.1), (0.5, 0.5), (1, 0), (np.nan, 0)])
def test_impossible_shares(low: float, high: float):
    with pytest.raises(UserError, match="at least 0 and below 1 together"):
        likelihood_window(np.arange(10), low, high)


@pytest.mark.parametrize("scores", [[], [[1.0]], [np.nan], [-np.inf, 1]])
def test_impossible_likelihoods(scores: list):
    with pytest.raises(UserError, match="finite numbers"):
        likelihood_window(scores)
    with pytest.raises(UserError, match="finite numbers"):
        bits_per_sample(scores, 1)


def test_empty_windows_and_lengths_that_do_not_fit():
    with pytest.raises(UserError, match="no clip of 1 is left"):
        likelihood_window([0.0])
    for lengths in ([1, 2, 3], 0, [5, 0]):
        with pytest.raises(UserError, match="one for each of 2"):
            bits_per_sample([-1.0, -2.0], lengths)
