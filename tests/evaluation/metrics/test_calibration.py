"""Tests of the expected calibration error."""

import numpy as np
import pytest

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.classifiers import expected_calibration_error


def two_classes(confidence: list[float]) -> np.ndarray:
    """Return probabilities of two classes; those of class 0 are given."""
    return np.stack([confidence, 1 - np.array(confidence)], axis=1)


def test_equal_confidences() -> None:
    labels = np.array([0, 0, 0, 1])
    assert expected_calibration_error(two_classes([0.75] * 4), labels) == pytest.approx(0)
    assert expected_calibration_error(two_classes([1.0] * 4), labels) == pytest.approx(0.25)
    assert expected_calibration_error(two_classes([1.0] * 4), np.zeros(4, int)) == 0


def test_bins_are_weighted_by_their_clips() -> None:
    # Three correct predictions with confidence 0.9 have an error of 0.1; a wrong one with confidence 0.6 has 0.6.
    probabilities, labels = two_classes([0.9, 0.9, 0.9, 0.6]), np.array([0, 0, 0, 1])
    assert expected_calibration_error(probabilities, labels) == pytest.approx(0.75 * 0.1 + 0.25 * 0.6)
    # In a single bin, overconfidence and underconfidence cancel.
    assert expected_calibration_error(probabilities, labels, bins=1) == pytest.approx(abs(3.3 - 3) / 4)


def test_bins_include_their_upper_edge() -> None:
    probabilities = two_classes([0.6, 0.6 - 1e-9])
    assert expected_calibration_error(probabilities, np.array([0, 1]), bins=5) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("probabilities", "labels"), [(np.zeros((0, 2)), []), (two_classes([0.9]), [0, 1]), ([0.9], [0])]
)
def test_arrays_of_wrong_shapes_are_refused(probabilities: np.ndarray, labels: list[int]) -> None:
    with pytest.raises(UserError, match="got shapes"):
        expected_calibration_error(probabilities, labels)
