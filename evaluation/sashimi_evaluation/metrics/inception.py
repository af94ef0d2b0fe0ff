"""Metrics of class probabilities: Inception Score, modified classifier score (mCS, mIS) and AM score."""

import numpy as np
from numpy.typing import ArrayLike

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.metrics.arrays import probability_matrix, probability_pair
from sashimi_evaluation.metrics.intervals import Interval, Resampling
from sashimi_evaluation.metrics.metric import FEW_CLIPS, Metric

PROBABILITY_FLOOR = float(np.finfo(np.float32).tiny)
"""Smallest normal float32; smaller probabilities, which a float32 softmax rounds to 0, are raised to it."""
_SPLITS = 10


def inception_score(probs: ArrayLike, splits: int = 10, seed: int = 0) -> tuple[float, float]:
    """Return the Inception Score exp(mean KL(p(y|x) ‖ p(y))): Salimans et al. 2016, arXiv 1606.03498, section 4.

    The clips are shuffled and divided into ``splits`` parts whose sizes differ by 1 or less; p(y) is the mean of each
    part. ``splits=1`` scores the whole set.

    Args:
        probs: shape (clips, classes), rows sum to 1.
        splits: number of parts.
        seed: of the shuffle.

    Returns:
        Mean and standard deviation over the parts; the score lies between 1 and the number of classes.

    Raises:
        UserError: the array is invalid, or there are fewer clips than parts.
    """
    matrix = probability_matrix(probs)
    if not 1 <= splits <= len(matrix):
        raise UserError(f"splits must be between 1 and the number of clips ({len(matrix)}), got {splits}")
    return _inception_score(matrix, splits, seed)


def log_modified_classifier_score(probs: ArrayLike) -> float:
    """Return the mean of KL(p_i ‖ p_j) over all ordered pairs of clips, in nats.

    This is the logarithm of ``modified_classifier_score``. It suits comparisons better: the score itself is the
    exponential of an unbounded quantity.

    Args:
        probs: shape (clips, classes), rows sum to 1.

    Raises:
        UserError: the array is invalid.
    """
    return _log_modified_classifier_score(probability_matrix(probs))


def modified_classifier_score(probs: ArrayLike) -> float:
    """Return the modified classifier score (mCS), also called modified Inception Score (mIS): exp(mean KL(p_i ‖ p_j)).

    Gurumurthy et al. 2017 (DeLiGAN, arXiv 1706.02071), over all ordered pairs of clips of all classes. DiffWave and
    SaShiMi estimate it from random pairs; this is the exact value. The mean over i and j splits into two sums over
    single clips: mean_i Σ_c p_ic log p_ic - Σ_c (mean_i p_ic) (mean_j log p_jc).

    Logarithms use max(p, 1.2e-38) (``PROBABILITY_FLOOR``). The score grows fast with the confidence of the classifier;
    compare only values of the same classifier.

    Args:
        probs: shape (clips, classes), rows sum to 1.

    Returns:
        At least 1.

    Raises:
        UserError: the array is invalid.
    """
    return _modified_classifier_score(probability_matrix(probs))


def am_score(probs_reference: ArrayLike, probs: ArrayLike) -> float:
    """Return the AM score KL(mean reference ‖ mean generated) + mean entropy of the generated clips, in nats.

    Zhou et al. 2018, arXiv 1703.02000. Lower is better. Logarithms use max(p, 1.2e-38) (``PROBABILITY_FLOOR``), so the
    score stays finite if no generated clip has some class.

    Args:
        probs_reference: of real clips, shape (clips, classes), rows sum to 1.
        probs: of the generated clips, shape (clips, classes).

    Raises:
        UserError: the arrays are invalid.
    """
    return compute_am_score(*probability_pair(probs_reference, probs, ("the reference probabilities", "probabilities")))


def compute_am_score(reference: np.ndarray, probabilities: np.ndarray) -> float:
    """Return what :func:`am_score` returns, for validated arrays."""
    expected, given = reference.mean(axis=0), probabilities.mean(axis=0)
    return float(expected @ (_log(expected) - _log(given)) + _entropy(probabilities).mean())


def inception_metrics(reference: np.ndarray, probabilities: np.ndarray, resampling: Resampling) -> list[Metric]:
    """Return IS, mCS and AM.

    The score of 10 splits is added if there are at least 10 clips per split and class.

    Args:
        reference: class probabilities of real clips, (n, classes).
        probabilities: of the clips to evaluate, (m, classes).
        resampling: settings of the intervals.
    """
    count, classes = probabilities.shape
    note = f"{count} clips are few: the papers score 2,048 and more" if count < FEW_CLIPS else ""

    def score(rows: np.ndarray) -> float:
        return _inception_score(rows, splits=1, seed=0)[0]

    interval = resampling.interval(score, probabilities, low=1)
    metrics = [Metric("is", "Inception score", score(probabilities), interval, "higher", note)]
    if count >= _SPLITS * classes:
        mean, deviation = _inception_score(probabilities, _SPLITS, resampling.seed)
        interval = Interval(mean - deviation, mean + deviation)
        note_of_splits = "interval: ± one standard deviation over the splits"
        title = f"Inception score, {_SPLITS} splits"
        metrics.append(Metric("is_splits", title, mean, interval, "higher", note_of_splits))
    modified, am = _modified_classifier_score(probabilities), compute_am_score(reference, probabilities)
    interval = resampling.interval(_modified_classifier_score, probabilities, low=1)
    metrics.append(Metric("mcs", "mCS (mIS)", modified, interval, "higher", note))
    interval = resampling.interval(compute_am_score, reference, probabilities, low=0)
    metrics.append(Metric("am", "AM", am, interval, "lower", note))
    return metrics


def _inception_score(probabilities: np.ndarray, splits: int, seed: int) -> tuple[float, float]:
    shuffled = probabilities[np.random.default_rng(seed).permutation(len(probabilities))]
    scores = [np.exp(_entropy(part.mean(axis=0)) - _entropy(part).mean()) for part in np.array_split(shuffled, splits)]
    return float(np.mean(scores)), float(np.std(scores))


def _modified_classifier_score(probabilities: np.ndarray) -> float:
    return float(np.exp(_log_modified_classifier_score(probabilities)))


def _log_modified_classifier_score(probabilities: np.ndarray) -> float:
    logs = _log(probabilities)
    return float((probabilities * logs).sum(axis=1).mean() - probabilities.mean(axis=0) @ logs.mean(axis=0))


def _entropy(probabilities: np.ndarray) -> np.ndarray:
    """Return -Σ p log p over the last axis, in nats, with 0 log 0 = 0; shape (..., classes) to (...)."""
    return -(probabilities * _log(probabilities)).sum(axis=-1)


def _log(probabilities: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probabilities, PROBABILITY_FLOOR))
