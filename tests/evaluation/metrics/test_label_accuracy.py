"""Histograms, accuracies and intervals of shares, worked out by hand."""

import numpy as np
import pytest

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.metrics.label_accuracy import class_histogram, label_accuracy, wilson_interval

PROBS = np.array([[0.7, 0.2, 0.1, 0], [0.6, 0.3, 0.1, 0], [0.1, 0.8, 0.1, 0], [0.3, 0.4, 0.3, 0], [0.5, 0.1, 0.4, 0]])
LABELS = [0, 1, 1, 1, 2]


def test_histogram():
    np.testing.assert_array_equal(class_histogram(PROBS), [3, 2, 0, 0])


def test_accuracy():
    found = label_accuracy(PROBS, LABELS)
    assert found.accuracy == 3 / 5
    np.testing.assert_allclose(found.per_class, [1, 2 / 3, 0, np.nan])
    np.testing.assert_array_equal(found.confusion, [[1, 0, 0, 0], [1, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])
    assert found.mean_probability == pytest.approx((0.7 + 0.3 + 0.8 + 0.4 + 0.4) / 5)


@pytest.mark.parametrize(
    ("labels", "complaint"),
    [
        ([0, 1], "5 whole numbers"),
        ([0.0, 1.0, 1.0, 1.0, 2.0], "5 whole numbers"),
        ([0, 1, 1, 1, 4], "between 0 and 3, got 0 to 4"),
        ([0, 1, 1, 1, -1], "between 0 and 3, got -1 to 1"),
    ],
)
def test_labels_that_do_not_fit(labels, complaint: str):
    with pytest.raises(UserError, match=complaint):
        label_accuracy(PROBS, labels)


def test_wilson():
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
