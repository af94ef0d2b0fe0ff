"""Expected calibration error of answers whose sureness and accuracy are known."""

import numpy as np
import pytest

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.classifiers import expected_calibration_error


def answers(sureness: list[float]) -> np.ndarray:
    """Class 0 with these probabilities, the rest with class 1."""
    return np.stack([sureness, 1 - np.array(sureness)], axis=1)


def test_an_answer_as_sure_as_right() -> None:
    labels = np.array([0, 0, 0, 1])
    assert expected_calibration_error(answers([0.75] * 4), labels) == pytest.approx(0)
    assert expected_calibration_error(answers([1.0] * 4), labels) == pytest.approx(0.25)
    assert expected_calibration_error(answers([1.0] * 4), np.zeros(4, int)) == 0


def test_bins_weigh_what_they_hold() -> None:
    # Three answers of 0.9, all right, are 0.1 off; one of 0.6, wrong, is 0.6 off.
    probabilities, labels = answers([0.9, 0.9, 0.9, 0.6]), np.array([0, 0, 0, 1])
    assert expected_calibration_error(probabilities, labels) == pytest.approx(0.75 * 0.1 + 0.25 * 0.6)
    # In one bin, being too sure makes up for not being sure enough.
    assert expected_calibration_error(probabilities, labels, bins=1) == pytest.approx(abs(3.3 - 3) / 4)


def test_bins_are_closed_above() -> None:
    probabilities = answers([0.6, 0.6 - 1e-9])
    assert expected_calibration_error(probabilities, np.array([0, 1]), bins=5) == pytest.approx(0.1)


@pytest.mark.parametrize(("probabilities", "labels"), [(np.zeros((0, 2)), []), (answers([0.9]), [0, 1]), ([0.9], [0])])
def test_what_fits_nowhere(probabilities: np.ndarray, labels: list[int]) -> None:
    with pytest.raises(UserError, match="got shapes"):
        expected_calibration_error(probabilities, labels)
