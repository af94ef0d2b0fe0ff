"""Tests of the detection of copied training clips."""

import numpy as np
import pytest

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.metrics.memorization import memorization


def test_copies_are_found_and_real_clips_are_not():
    random = np.random.default_rng(0)
    train, held_out, fresh = (random.normal(size=(clips, 3)) for clips in (300, 1000, 1000))
    honest = memorization(fresh, train, held_out)
    assert honest.share_below_first < 0.03
    assert 0.03 < honest.share_below_fifth < 0.08
    assert honest.median_ratio == pytest.approx(1, abs=0.1)
    copied = memorization(train[:50], train, held_out)
    assert (copied.share_below_first, copied.share_below_fifth, copied.median_ratio) == (1, 1, 0)
    assert memorization(fresh + 100, train, held_out).median_ratio > 10


def test_the_shares_below_the_percentiles():
    train = np.zeros((1, 1))
    held_out = np.arange(101.0)[:, None]  # percentiles 1, 5 and 50 are the distances 1, 5 and 50
    samples = np.array([0.5, 1.0, 4.0, 5.0, 100.0])[:, None]
    found = memorization(samples, train, held_out)
    assert (found.share_below_first, found.share_below_fifth, found.median_ratio) == (0.2, 0.6, 0.08)


def test_wrong_input():
    features = np.random.default_rng(0).normal(size=(5, 3))
    with pytest.raises(UserError, match="held-out clips are also training clips"):
        memorization(features, features, features)
