"""Tests of class histograms and label accuracy."""

import numpy as np
import pytest

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.metrics.label_accuracy import class_histogram, label_accuracy

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
