"""Validation of the arrays that metrics take."""

import numpy as np
from numpy.typing import ArrayLike

from sashimi_diffusion.errors import UserError

_SUM_TOLERANCE = 1e-3


def feature_matrix(features: ArrayLike, name: str = "features", at_least: int = 1) -> np.ndarray:
    """Validate features.

    Args:
        features: real numbers, shape (clips, width).
        name: name of the features in error messages.
        at_least: smallest number of clips for which the metric is defined.

    Returns:
        float64, the same shape.

    Raises:
        UserError: the array has values that are not finite real numbers, another number of axes, no columns, or too
            few rows.
    """
    return _matrix(features, name, ("clips", "width"), at_least)


def feature_pair(
    first: ArrayLike,
    second: ArrayLike,
    names: tuple[str, str] = ("the first features", "the second features"),
    at_least: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Validate two sets of features of the same width, see :func:`feature_matrix`.

    Raises:
        UserError: one of them is invalid, or their widths differ.
    """
    matrices = feature_matrix(first, names[0], at_least), feature_matrix(second, names[1], at_least)
    check_same_width(matrices, names, "features must come from the same extractor")
    return matrices


def probability_matrix(probs: ArrayLike, name: str = "probabilities") -> np.ndarray:
    """Validate class probabilities and divide each row by its sum.

    Args:
        probs: shape (clips, classes), not negative; rows sum to 1 within 1e-3, which allows for float16 rounding.
        name: name of the probabilities in error messages.

    Returns:
        float64, the same shape, rows sum to 1.

    Raises:
        UserError: the array is not a matrix of finite numbers, or it has a negative entry or a row that does not sum to
            1.
    """
    matrix = _matrix(probs, name, ("clips", "classes"), at_least=1)
    if matrix.min() < 0:
        raise UserError(f"{name} must not be negative, got {matrix.min():g}: give the softmax of the logits")
    sums = matrix.sum(axis=1, keepdims=True)
    worst = int(np.abs(sums - 1).argmax())
    if abs(sums[worst, 0] - 1) > _SUM_TOLERANCE:
        raise UserError(f"{name} must sum to 1 in each row, got {sums[worst, 0]:g} in row {worst}: give the softmax")
    return matrix / sums


def probability_pair(
    first: ArrayLike,
    second: ArrayLike,
    names: tuple[str, str] = ("the first probabilities", "the second probabilities"),
) -> tuple[np.ndarray, np.ndarray]:
    """Validate two sets of probabilities of the same classes, see :func:`probability_matrix`.

    Raises:
        UserError: one of them is invalid, or their numbers of classes differ.
    """
    matrices = probability_matrix(first, names[0]), probability_matrix(second, names[1])
    check_same_width(matrices, names, "probabilities must come from the same classifier")
    return matrices


def check_same_width(matrices: tuple[np.ndarray, np.ndarray], names: tuple[str, str], expected: str) -> None:
    """Check that two matrices have the same number of columns.

    Args:
        matrices: the two matrices.
        names: their names in the message.
        expected: end of the message, which says what is expected.

    Raises:
        UserError: the numbers of columns differ.
    """
    widths = [matrix.shape[1] for matrix in matrices]
    if widths[0] != widths[1]:
        raise UserError(f"{names[0]} and {names[1]} have {widths[0]} and {widths[1]} columns: {expected}")


def _matrix(values: ArrayLike, name: str, axes: tuple[str, str], at_least: int) -> np.ndarray:
    try:
        matrix = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name} must be real numbers of shape ({', '.join(axes)}): {error}") from None
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise UserError(f"{name} must have the shape ({', '.join(axes)}), got {matrix.shape}")
    if len(matrix) < at_least:
        raise UserError(f"{name} must have at least {at_least} {axes[0]}, got {len(matrix)}")
    if not np.isfinite(matrix).all():
        bad = int((~np.isfinite(matrix).all(axis=1)).argmax())
        raise UserError(f"{name} must be finite, but row {bad} contains NaN or infinity: remove or repair that clip")
    return matrix
