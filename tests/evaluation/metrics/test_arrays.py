"""Tests of the validation of feature and probability arrays."""

import numpy as np
import pytest

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.metrics.arrays import feature_matrix, feature_pair, probability_matrix, probability_pair

GOOD = np.ones((3, 2))


@pytest.mark.parametrize(
    ("features", "complaint"),
    [
        (np.ones(3), r"shape \(clips, width\), got \(3,\)"),
        (np.ones((3, 0)), r"got \(3, 0\)"),
        (np.ones((0, 2)), "at least 1 clips, got 0"),
        ([[1.0, 2.0], [np.nan, 1.0]], "row 1 contains NaN"),
        ([[1.0, 2.0], [3.0]], "real numbers"),
        ([["loud"]], "real numbers"),
    ],
)
def test_invalid_features_are_refused(features, complaint: str):
    with pytest.raises(UserError, match=complaint):
        feature_matrix(features)


def test_features_of_different_widths_are_refused():
    with pytest.raises(UserError, match="2 and 5 columns"):
        feature_pair(GOOD, np.ones((3, 5)))


@pytest.mark.parametrize(
    ("probs", "complaint"),
    [
        ([[0.5, 0.5], [1.1, -0.1]], "negative, got -0.1"),
        ([[0.5, 0.5], [0.5, 0.498]], "got 0.998 in row 1"),
        ([[0.5, np.inf]], "row 0 contains NaN or infinity"),
        ([0.5, 0.5], r"\(clips, classes\), got \(2,\)"),
    ],
)
def test_invalid_probabilities_are_refused(probs, complaint: str):
    with pytest.raises(UserError, match=complaint):
        probability_matrix(probs)


def test_probabilities_over_different_classes_are_refused():
    with pytest.raises(UserError, match="2 and 4 columns"):
        probability_pair(np.full((3, 2), 0.5), np.full((3, 4), 0.25))


def test_rounded_rows_are_divided_by_their_sum():
    rows = probability_matrix(np.asarray([[0.3, 0.7004], [0.25, 0.7496]], dtype=np.float32))
    assert rows.dtype == np.float64
    np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-15)
    np.testing.assert_allclose(rows[0, 0], 0.3 / 1.0004, rtol=1e-6)
