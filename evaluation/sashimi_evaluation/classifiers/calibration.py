"""Whether a classifier's probabilities mean what they say."""

import numpy as np

from sashimi_diffusion.errors import UserError


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """The mean distance between how sure a classifier is and how often it is right (Guo et al. 2017, arXiv 1706.04599).

    Examples are put into bins of equal width by the probability of the class they are taken for; each bin weighs as
    many examples as it has (equation 3 there).

    Args:
        probabilities: shape (n, classes), rows that sum to 1.
        labels: the true classes, whole numbers, shape (n,).
        bins: how many.

    Returns:
        From 0, as sure as right, to 1.

    Raises:
        UserError: no examples, or shapes that do not fit.
    """
    probabilities, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if probabilities.ndim != 2 or len(probabilities) == 0 or labels.shape != (len(probabilities),):
        raise UserError(
            f"expected probabilities (n, classes) and labels (n,) with n above 0, "
            f"got shapes {probabilities.shape} and {labels.shape}"
        )
    sureness = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    places = np.clip(np.ceil(sureness * bins).astype(int) - 1, 0, bins - 1)
    surplus = np.bincount(places, weights=sureness - right, minlength=bins)
    return float(np.abs(surplus).sum() / len(labels))
