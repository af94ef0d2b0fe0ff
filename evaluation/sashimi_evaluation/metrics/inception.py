"""Scores of class probabilities: Inception Score, modified classifier score (mCS, mIS) and AM score."""

import numpy as np
from numpy.typing import ArrayLike

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.metrics.arrays import probability_matrix, probability_pair

# The smallest normal float32: a softmax can write down everything above it, and only what it lost becomes finite.
PROBABILITY_FLOOR = float(np.finfo(np.float32).tiny)


def inception_score(probs: ArrayLike, splits: int = 10, seed: int = 0) -> tuple[float, float]:
    """Inception Score exp(mean KL(p(y|x) ‖ p(y))): Salimans et al. 2016, arXiv 1606.03498, section 4.

    The clips are shuffled and divided into ``splits`` parts of equal size (one clip more or less), and p(y) is the mean
    of the part. ``splits=1`` scores the whole set.

    Args:
        probs: shape (clips, classes), rows sum to 1.
        splits: number of parts.
        seed: of the shuffle.

    Returns:
        Mean and standard deviation over the parts; the score lies between 1 and the number of classes.

    Raises:
        UserError: the array cannot be used, or there are fewer clips than parts.
    """
    matrix = probability_matrix(probs)
    if not 1 <= splits <= len(matrix):
        raise UserError(f"splits must be between 1 and the number of clips ({len(matrix)}), got {splits}")
    shuffled = matrix[np.random.default_rng(seed).permutation(len(matrix))]
    scores = [np.exp(entropy(part.mean(axis=0)) - entropy(part).mean()) for part in np.array_split(shuffled, splits)]
    return float(np.mean(scores)), float(np.std(scores))


def log_modified_classifier_score(probs: ArrayLike) -> float:
    """Mean KL(p_i ‖ p_j) over all ordered pairs of clips, in nats: the logarithm of ``modified_classifier_score``.

    Use this one to compare: the score itself is the exponential of an unbounded quantity.

    Args:
        probs: shape (clips, classes), rows sum to 1.

    Raises:
        UserError: the array cannot be used.
    """
    matrix = probability_matrix(probs)
    logs = _log(matrix)
    return float((matrix * logs).sum(axis=1).mean() - matrix.mean(axis=0) @ logs.mean(axis=0))


def modified_classifier_score(probs: ArrayLike) -> float:
    """Modified classifier score (mCS), also called modified Inception Score (mIS): exp(mean KL(p_i ‖ p_j)).

    Gurumurthy et al. 2017 (DeLiGAN, arXiv 1706.02071), over all ordered pairs of clips of all classes, as
    DiffWave and SaShiMi do, but exact. The mean over i and j splits into two sums over single clips:
    mean_i Σ_c p_ic log p_ic - Σ_c (mean_i p_ic) (mean_j log p_jc).

    Probabilities count as at least 1.2e-38 (``PROBABILITY_FLOOR``) in logarithms. The score grows fast with the
    confidence of the classifier; compare values of one classifier only.

    Args:
        probs: shape (clips, classes), rows sum to 1.

    Returns:
        At least 1.

    Raises:
        UserError: the array cannot be used.
    """
    return float(np.exp(log_modified_classifier_score(probs)))


def am_score(probs_reference: ArrayLike, probs: ArrayLike) -> float:
    """AM score KL(mean reference ‖ mean generated) + mean entropy of the generated, in nats; lower is better.

    Zhou et al. 2018, arXiv 1703.02000. A class that no clip has counts as 1.2e-38 (``PROBABILITY_FLOOR``).

    Args:
        probs_reference: of real clips, shape (clips, classes), rows sum to 1.
        probs: of the generated clips, shape (clips, classes).

    Raises:
        UserError: the arrays cannot be used.
    """
    reference, generated = probability_pair(probs_reference, probs, ("the reference probabilities", "probabilities"))
    wanted, given = reference.mean(axis=0), generated.mean(axis=0)
    return float(wanted @ (_log(wanted) - _log(given)) + entropy(generated).mean())


def entropy(probs: np.ndarray) -> np.ndarray:
    """-Σ p log p over the last axis, in nats, where 0 log 0 is 0; shape (..., classes) to (...)."""
    return -(probs * _log(probs)).sum(axis=-1)


def _log(probs: np.ndarray) -> np.ndarray:
    return np.log(np.maximum(probs, PROBABILITY_FLOOR))
