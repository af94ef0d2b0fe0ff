"""Agreement of a classifier with labels: accuracy, confusion matrix, class histogram and calibration."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.metrics.arrays import probability_matrix
from sashimi_evaluation.metrics.intervals import Resampling
from sashimi_evaluation.metrics.metric import Metric


@dataclass(frozen=True, eq=False)
class Accuracy:
    """Classification accuracy: how often the most probable class is the label.

    Attributes:
        accuracy: fraction of all clips, from 0 to 1.
        per_class: fraction of the clips with each label, float64, shape (classes,); NaN for a class without clips.
        confusion: counts, int64, shape (classes, classes): rows are labels, columns are predictions.
        mean_probability: mean probability of the label over all clips.
    """

    accuracy: float
    per_class: np.ndarray
    confusion: np.ndarray
    mean_probability: float


def class_histogram(probs: ArrayLike) -> np.ndarray:
    """Count the clips by their most probable class, or by the first one in case of a tie.

    Args:
        probs: shape (clips, classes), rows sum to 1.

    Returns:
        int64, shape (classes,).

    Raises:
        UserError: the array is invalid.
    """
    return compute_class_histogram(probability_matrix(probs))


def compute_class_histogram(probabilities: np.ndarray) -> np.ndarray:
    """Return what :func:`class_histogram` returns, for a validated array."""
    return np.bincount(probabilities.argmax(axis=1), minlength=probabilities.shape[1])


def label_accuracy(probs: ArrayLike, labels: ArrayLike) -> Accuracy:
    """Compare the most probable classes with labels, such as the classes that the clips were generated for.

    Args:
        probs: shape (clips, classes), rows sum to 1.
        labels: whole numbers from 0 to classes - 1, shape (clips,).

    Raises:
        UserError: the arrays are invalid, or have different numbers of clips.
    """
    matrix = probability_matrix(probs)
    return compute_label_accuracy(matrix, _checked_labels(labels, *matrix.shape))


def compute_label_accuracy(probabilities: np.ndarray, labels: np.ndarray) -> Accuracy:
    """Return what :func:`label_accuracy` returns, for validated arrays."""
    confusion = np.zeros((probabilities.shape[1],) * 2, dtype=np.int64)
    np.add.at(confusion, (labels, probabilities.argmax(axis=1)), 1)
    counts = confusion.sum(axis=1)
    per_class = np.divide(np.diag(confusion), counts, out=np.full(len(counts), np.nan), where=counts > 0)
    mean_probability = probabilities[np.arange(len(labels)), labels].mean()
    return Accuracy(float(np.trace(confusion) / len(labels)), per_class, confusion, float(mean_probability))


def label_accuracy_metrics(probabilities: np.ndarray, labels: np.ndarray, resampling: Resampling) -> list[Metric]:
    """Return the accuracy of the labels and the mean probability of the label.

    Args:
        probabilities: class probabilities, (clips, classes).
        labels: the class of each clip, int64 (clips,).
        resampling: settings of the confidence intervals.
    """
    accuracy = compute_label_accuracy(probabilities, labels)
    interval = resampling.proportion(accuracy.accuracy, len(labels))
    label_probabilities = probabilities[np.arange(len(labels)), labels]
    mean_interval = resampling.interval(np.mean, label_probabilities, low=0, high=1)
    return [
        Metric("accuracy", "Label accuracy", accuracy.accuracy, interval, "higher"),
        Metric("confidence", "Mean probability of the label", accuracy.mean_probability, mean_interval, "higher"),
    ]


def expected_calibration_error(probabilities: ArrayLike, labels: ArrayLike, bins: int = 15) -> float:
    """Return the expected calibration error of a classifier (Guo et al. 2017, arXiv 1706.04599, equation 3).

    Examples are binned by the probability of the predicted class; the bins have equal width. The error is the mean
    difference between confidence and accuracy, weighted by the number of examples in each bin.

    Args:
        probabilities: shape (n, classes), rows sum to 1.
        labels: the true classes, whole numbers, shape (n,).
        bins: number of bins.

    Returns:
        The error, from 0 (calibrated) to 1.

    Raises:
        UserError: there are no examples, or the shapes do not match.
    """
    probabilities, labels = np.asarray(probabilities, dtype=np.float64), np.asarray(labels)
    if probabilities.ndim != 2 or len(probabilities) == 0 or labels.shape != (len(probabilities),):
        raise UserError(
            f"expected probabilities (n, classes) and labels (n,) with n above 0, "
            f"got shapes {probabilities.shape} and {labels.shape}"
        )
    confidence = probabilities.max(axis=1)
    correct = probabilities.argmax(axis=1) == labels
    indices = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    differences = np.bincount(indices, weights=confidence - correct, minlength=bins)
    return float(np.abs(differences).sum() / len(labels))


def _checked_labels(labels: ArrayLike, clips: int, classes: int) -> np.ndarray:
    checked = np.asarray(labels)
    if checked.shape != (clips,) or not np.issubdtype(checked.dtype, np.integer):
        raise UserError(f"labels must be {clips} whole numbers, one for each clip, got {checked.dtype} {checked.shape}")
    if checked.min() < 0 or checked.max() >= classes:
        raise UserError(f"labels must lie between 0 and {classes - 1}, got {checked.min()} to {checked.max()}")
    return checked
