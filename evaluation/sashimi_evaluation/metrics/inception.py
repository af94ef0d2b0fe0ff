"""Metrics of class probabilities: Inception Score, modified classifier score (mCS, mIS) and AM score."""

import numpy as np
from numpy.typing import ArrayLike

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.metrics.arrays import probability_matrix, probability_pair
from sashimi_evaluation.metrics.intervals import Interval, Resampling
from sashimi_evaluation.metrics.metric import FEW_CLIPS, Metric

PROBABILITY_FLOOR = float(np.finfo(np.float32).tiny)
"""Smallest normal float32. Logarithms clamp probabilities to it, because a float32 softmax rounds smaller ones to 0."""
_SPLITS = 10


def inception_score(probs: ArrayLike, splits: int = 10, seed: int = 0) -> tuple[float, float]:
    """Return the Inception Score exp(mean KL(p(y|x) ‖ p(y))): Salimans et al. 2016, arXiv 1606.03498, section 4.

    The clips are shuffled and divided into ``splits`` parts whose sizes differ by 1 or less; p(y) is the mean of each
    part. ``splits=1`` evaluates the whole set.

    Args:
        probs: shape (clips, classes), rows sum to 1.
        splits: number of parts.
        seed: seed of the shuffle.

    Returns:
        Mean and standard deviation over the parts. Scores lie between 1 and the number of classes.

    Raises:
        UserError: the array is invalid, or there are fewer clips than parts.
    """
    matrix = probability_matrix(probs)
    if not 1 <= splits <= len(matrix):
        raise UserError(f"splits must be between 1 and the number of clips ({len(matrix)}), got {splits}")
    return _inception_score(matrix, splits, seed)


def log_modified_classifier_score(probs: ArrayLike) -> float:
    """Return the mean of KL(p_i ‖ p_j) over all ordered pairs of clips, in nats.

    This is the logarithm of ``modified_classifier_score``. It is easier to compare, because the score itself grows
    exponentially with the confidence of the classifier.

    Args:
        probs: shape (clips, classes), rows sum to 1.

    Raises:
        UserError: the array is invalid.
    """
    return _log_modified_classifier_score(probability_matrix(probs))


def modified_classifier_score(probs: ArrayLike) -> float:
    """Return the modified classifier score (mCS), also called modified Inception Score (mIS): exp(mean KL(p_i ‖ p_j)).

    Gurumurthy et al. 2017 (DeLiGAN, arXiv 1706.02071), as the mean over all ordered pairs of clips i, j, also of
    different classes. DiffWave and SaShiMi estimate it from random pairs; this is the exact value. No loop over pairs
    is necessary, because the mean is mean_i Σ_c p_ic log p_ic - Σ_c (mean_i p_ic) (mean_j log p_jc).

    Logarithms use max(p, 1.2e-38) (``PROBABILITY_FLOOR``). The score grows fast with the confidence of the classifier:
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
    score stays finite if a class is missing among the generated clips.

    Args:
        probs_reference: class probabilities of real clips, shape (clips, classes), rows sum to 1.
        probs: class probabilities of the generated clips, shape (clips, classes), rows sum to 1.

    Raises:
        UserError: the arrays are invalid.
    """
    return compute_am_score(*probability_pair(probs_reference, probs, ("the reference probabilities", "probabilities")))


def compute_am_score(reference: np.ndarray, probabilities: np.ndarray) -> float:
    """Return what :func:`am_score` returns, for validated arrays."""
    reference_mean, mean = reference.mean(axis=0), probabilities.mean(axis=0)
    divergence = reference_mean @ (_log(reference_mean) - _log(mean))
    return float(divergence + _entropy(probabilities).mean())


def inception_metrics(reference: np.ndarray, probabilities: np.ndarray, resampling: Resampling) -> list[Metric]:
    """Return IS, mCS and AM.

    The Inception Score over 10 splits is added if every split has at least as many clips as there are classes.

    Args:
        reference: class probabilities of real clips, (n, classes).
        probabilities: class probabilities of the clips to evaluate, (m, classes).
        resampling: settings of the confidence intervals.
    """
    count, classes = probabilities.shape
    note = f"{count} clips are few: the papers use 2,048 or more" if count < FEW_CLIPS else ""

    def score(rows: np.ndarray) -> float:
        return _inception_score(rows, splits=1, seed=0)[0]

    interval = resampling.interval(score, probabilities, low=1)
    metrics = [Metric("is", "Inception score", score(probabilities), interval, "higher", note)]
    if count >= _SPLITS * classes:
        mean, deviation = _inception_score(probabilities, _SPLITS, resampling.seed)
        interval = Interval(mean - deviation, mean + deviation)
        splits_note = "interval: ± one standard deviation over the splits"
        title = f"Inception score, {_SPLITS} splits"
        metrics.append(Metric("is_splits", title, mean, interval, "higher", splits_note))
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
