"""Tests of the Inception, modified classifier and AM scores."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.metrics.inception import (
    PROBABILITY_FLOOR,
    am_score,
    inception_score,
    log_modified_classifier_score,
    modified_classifier_score,
)

LABELS = np.arange(200) % 10
PERFECT = np.eye(10)[LABELS]
COLLAPSED = np.eye(10)[np.zeros(200, dtype=int)]
DROPPED = np.eye(10)[np.arange(200) % 5]
UNIFORM = np.full((200, 10), 0.1)
ERROR = 0.2
NOISY = (1 - ERROR - ERROR / 9) * PERFECT + ERROR / 9
NOISY_ENTROPY = -(1 - ERROR) * np.log(1 - ERROR) - ERROR * np.log(ERROR / 9)
LOST = -np.log(PROBABILITY_FLOOR)  # negative log of a probability of 0


@pytest.mark.parametrize(
    ("probs", "score", "log_modified", "am"),
    [
        (PERFECT, 10, 0.9 * LOST, 0),
        (COLLAPSED, 1, 0, 0.9 * LOST - np.log(10)),
        (DROPPED, 5, 0.8 * LOST, 0.5 * np.log(0.5) + 0.5 * (np.log(0.1) + LOST)),
        (UNIFORM, 1, 0, np.log(10)),
        (
            NOISY,
            10 / np.exp(NOISY_ENTROPY),
            0.9 * (1 - ERROR - ERROR / 9) * np.log((1 - ERROR) / (ERROR / 9)),
            NOISY_ENTROPY,
        ),
    ],
    ids=["perfect", "collapsed", "dropped", "uniform", "noisy"],
)
def test_scores_of_known_sets(probs: np.ndarray, score: float, log_modified: float, am: float):
    assert inception_score(probs, splits=1) == (pytest.approx(score, rel=1e-12), 0)
    assert log_modified_classifier_score(probs) == pytest.approx(log_modified, rel=1e-12, abs=1e-12)
    assert modified_classifier_score(probs) == pytest.approx(np.exp(log_modified), rel=1e-10)
    assert am_score(PERFECT, probs) == pytest.approx(am, rel=1e-12, abs=1e-12)


def test_the_modified_score_is_the_mean_over_all_pairs():
    probs = np.random.default_rng(0).dirichlet(np.full(7, 0.3), size=40)
    pairs = [np.sum(p * np.log(p / q)) for p in probs for q in probs]
    assert log_modified_classifier_score(probs) == pytest.approx(np.mean(pairs), rel=1e-12)


def test_the_am_score_compares_with_the_classes_of_the_reference():
    probs = np.array([[0.9, 0.1], [0.5, 0.5]])
    reference = np.array([[1.0, 0.0], [0.2, 0.8], [0.3, 0.7]])  # mean (0.5, 0.5), that of probs is (0.7, 0.3)
    divergence = 0.5 * np.log(0.5 / 0.7) + 0.5 * np.log(0.5 / 0.3)
    entropies = [-0.9 * np.log(0.9) - 0.1 * np.log(0.1), np.log(2)]
    assert am_score(reference, probs) == pytest.approx(divergence + np.mean(entropies), rel=1e-12)


def test_splits_are_evaluated_separately():
    probs = np.random.default_rng(0).dirichlet(np.full(5, 0.5), size=23)
    order = np.random.default_rng(7).permutation(23)
    parts = [inception_score(part, splits=1)[0] for part in np.split(probs[order], [8, 16])]
    assert inception_score(probs, splits=3, seed=7) == (pytest.approx(np.mean(parts)), pytest.approx(np.std(parts)))
    assert inception_score(probs, splits=3, seed=7) != inception_score(probs, splits=3, seed=8)
    assert inception_score(PERFECT[:10], splits=10) == (pytest.approx(1), pytest.approx(0))  # one clip in each


def test_clips_sorted_by_class_are_shuffled_first():
    mean, deviation = inception_score(np.eye(10)[np.sort(LABELS)])
    assert mean > 7
    assert 0 < deviation < 2


@given(st.integers(0, 10_000))
def test_the_order_of_clips_does_not_matter(seed: int):
    random = np.random.default_rng(seed)
    probs, reference = random.dirichlet(np.ones(4), size=9), random.dirichlet(np.ones(4), size=6)
    other = random.permutation(probs)
    assert inception_score(other, splits=1)[0] == pytest.approx(inception_score(probs, splits=1)[0], rel=1e-12)
    assert modified_classifier_score(other) == pytest.approx(modified_classifier_score(probs), rel=1e-10)
    assert am_score(random.permutation(reference), other) == pytest.approx(am_score(reference, probs), rel=1e-12)
    assert 1 <= inception_score(probs, splits=1)[0] <= 4


@pytest.mark.parametrize("splits", [0, 10])
def test_wrong_numbers_of_splits_are_refused(splits: int):
    with pytest.raises(UserError, match=r"between 1 and the number of clips \(9\)"):
        inception_score(PERFECT[:9], splits=splits)
