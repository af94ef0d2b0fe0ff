"""What a classifier hears: classes of the clips, and whether clips say what they were asked to say."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.metrics.arrays import probability_matrix
from sashimi_evaluation.metrics.intervals import Interval, check_level


@dataclass(frozen=True, eq=False)
class Accuracy:
    """How often the most probable class is the label; shares from 0 to 1.

    Attributes:
        accuracy: over all clips.
        per_class: float64, shape (classes,); NaN for a class that no label has.
        confusion: counts, int64, shape (classes, classes): rows are labels, columns are predictions.
        mean_probability: of the label, over all clips.
    """

    accuracy: float
    per_class: np.ndarray
    confusion: np.ndarray
    mean_probability: float


def class_histogram(probs: ArrayLike) -> np.ndarray:
    """How many clips have each class as their most probable one, int64, shape (classes,); of equal ones the first.

    Args:
        probs: shape (clips, classes), rows sum to 1.

    Raises:
        UserError: the array cannot be used.
    """
    matrix = probability_matrix(probs)
    return np.bincount(matrix.argmax(axis=1), minlength=matrix.shape[1])


def label_accuracy(probs: ArrayLike, labels: ArrayLike) -> Accuracy:
    """Compares the most probable classes with labels, such as those the clips were generated for.

    Args:
        probs: shape (clips, classes), rows sum to 1.
        labels: whole numbers from 0 to classes - 1, shape (clips,).

    Raises:
        UserError: the arrays cannot be used or do not fit.
    """
    matrix = probability_matrix(probs)
    wanted = _checked_labels(labels, *matrix.shape)
    confusion = np.zeros((matrix.shape[1],) * 2, dtype=np.int64)
    np.add.at(confusion, (wanted, matrix.argmax(axis=1)), 1)
    counts = confusion.sum(axis=1)
    per_class = np.divide(np.diag(confusion), counts, out=np.full(len(counts), np.nan), where=counts > 0)
    of_label = matrix[np.arange(len(wanted)), wanted]
    return Accuracy(float(np.trace(confusion) / len(wanted)), per_class, confusion, float(of_label.mean()))


def wilson_interval(successes: int, n: int, level: float = 0.95) -> Interval:
    """Score interval of a share: Wilson 1927. Sensible also for few clips and for shares of 0 or 1.

    Args:
        successes: from 0 to n.
        n: number of trials, at least 1.
        level: between 0 and 1.

    Raises:
        UserError: a number out of its range.
    """
    if n < 1 or not 0 <= successes <= n:
        raise UserError(f"an interval needs 0 <= successes <= n and n >= 1, got {successes} of {n}")
    check_level(level)
    z = NormalDist().inv_cdf((1 + level) / 2)
    share = successes / n
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else middle - half  # exactly, where rounding would leave 1e-17
    return Interval(low, 1.0 if successes == n else middle + half)


def _checked_labels(labels: ArrayLike, clips: int, classes: int) -> np.ndarray:
    wanted = np.asarray(labels)
    if wanted.shape != (clips,) or not np.issubdtype(wanted.dtype, np.integer):
        raise UserError(f"labels must be {clips} whole numbers, one for each clip, got {wanted.dtype} {wanted.shape}")
    if wanted.min() < 0 or wanted.max() >= classes:
        raise UserError(f"labels must lie between 0 and {classes - 1}, got {wanted.min()} to {wanted.max()}")
    return wanted
