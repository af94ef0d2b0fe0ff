"""The SC09 metrics as the official SaShiMi repository computes them, faults included, to compare with published ones.

They follow ``models/sashimi/metrics.py`` and ``sc09_classifier/test_speech_commands.py`` of state-spaces/s4. Its AM
score is ``.inception.am_score``. Random numbers are those of NumPy's legacy generator, which the
official code seeds globally; here every function has its own.
"""

import warnings
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.metrics.arrays import feature_pair, probability_matrix
from sashimi_evaluation.metrics.ndb import ndb

_PAIRS = 10_000
_LOWER = np.arange(0.0, 0.5, 0.1)
_UPPER = np.arange(0.6, 1.0, 0.05)
_FEWEST_CLIPS = 20  # so that the narrowest window of the search, a fifth of one half, holds two clips


@dataclass(frozen=True, eq=False)
class ThresholdSearch:
    """A search for the likelihood window with the best official Inception Score.

    Attributes:
        pairs: the windows (lower, upper) that were tried, as shares of the ascending order.
        scores: the official Inception Score of each on the tuning half.
        selected: the window that the official code takes: the last one, not the best.
        best: the window that it means to take.
        tuning: indices of the clips of the tuning half, ascending.
        kept: indices of the clips of the other half that are inside of ``selected``, ascending.
    """

    pairs: tuple[tuple[float, float], ...]
    scores: tuple[float, ...]
    selected: tuple[float, float]
    best: tuple[float, float]
    tuning: np.ndarray
    kept: np.ndarray


def official_inception_score(probs: ArrayLike) -> float:
    """The official "IS", which is not the Inception Score.

    Its entropy runs over the clips instead of the classes (SciPy's default axis): each class column of a random half
    of the clips is normalised over the clips and compared with a constant. The marginal distribution of the classes has
    no effect, so that missing classes are hardly punished, and the value may exceed the number of classes. It is close
    to the Inception Score only where the classes are balanced. The other half of the clips has no effect at all.

    Args:
        probs: shape (clips, classes), at least 2 clips; rows sum to 1.

    Returns:
        exp of the mean over the classes; NaN if a class has no probability in any clip, as in the official code.

    Raises:
        UserError: the array cannot be used, or there are fewer than 2 clips.
    """
    matrix = probability_matrix(probs)
    if len(matrix) < 2:
        raise UserError("the official Inception Score halves the clips: it needs at least 2, got 1")
    half = matrix[np.random.RandomState(0).permutation(len(matrix))][: len(matrix) // 2]
    with np.errstate(invalid="ignore"):
        columns = half / half.sum(axis=0)
    return float(np.exp(_divergence(columns.T, np.full(columns.T.shape, 1 / len(half))).mean()))


def official_modified_inception_score(probs: ArrayLike, pairs: int = _PAIRS, seed: int = 0) -> float:
    """The official "mIS": exp of the mean KL(p_i ‖ p_j) over pairs drawn at random, with replacement.

    A random estimate of ``.inception.modified_classifier_score``, which is exact; its scatter is a few
    per cent. Nothing is clamped: a pair whose p_j is 0 where p_i is not makes it infinite.

    Args:
        probs: shape (clips, classes), rows sum to 1.
        pairs: how many.
        seed: of NumPy's legacy generator.

    Raises:
        UserError: the array cannot be used.
    """
    matrix = probability_matrix(probs)
    first, second = np.random.RandomState(seed).choice(len(matrix), size=(pairs, 2)).T
    return float(np.exp(_divergence(matrix[first], matrix[second]).mean()))


def official_ndb(features_reference: ArrayLike, features: ArrayLike) -> float:
    """The official NDB/K: 50 bins, k-means with seed 0, significance 0.05. The same as ``.ndb.ndb``.

    Returns:
        The share of bins that differ, from 0 to 1.

    Raises:
        UserError: as ``ndb``.
    """
    return ndb(features_reference, features, bins=50, seed=0, alpha=0.05).share


def official_frechet_distance(features_a: ArrayLike, features_b: ArrayLike) -> float:
    """The official FID, with SciPy's square root of the product of the covariances.

    Equal to ``.frechet.frechet_distance`` where both covariances have full rank. With fewer clips
    than columns the product is singular and its square root ill-conditioned: the result is off (by 1e-6 for 100 clips
    with 128 features) and complex in the official code, where the real part is meant. If the root is not finite, 1e-4
    is added to both diagonals.

    Args:
        features_a: shape (clips, width), at least 2 clips.
        features_b: shape (clips, width), at least 2 clips.

    Raises:
        UserError: the arrays cannot be used, or SciPy is not installed.
    """
    features_a, features_b = feature_pair(features_a, features_b, at_least=2)
    gap = features_a.mean(axis=0) - features_b.mean(axis=0)
    first, second = np.atleast_2d(np.cov(features_a.T)), np.atleast_2d(np.cov(features_b.T))
    root = _matrix_root(first @ second)
    if not np.isfinite(root).all():
        offset = 1e-4 * np.eye(len(first))
        root = _matrix_root((first + offset) @ (second + offset))
    return float(gap @ gap + np.trace(first) + np.trace(second) - 2 * np.trace(root).real)


def official_threshold_search(probs: ArrayLike, random: np.random.RandomState) -> ThresholdSearch:
    """The official search for a likelihood window, whose result is always (0.4, 0.95).

    A random half of the clips serves to try 40 windows of their order, the other half is scored inside of the chosen
    one. The fault: the best value found so far is never stored, so that every window with a positive score replaces
    its predecessor and the last one wins.

    Args:
        probs: of clips in ascending order of likelihood, shape (clips, classes), at least 20 clips.
        random: draws the half. In the official script it has drawn the pairs of the test set's mIS just before, see
            ``state_after_modified_inception_score``.

    Raises:
        UserError: the array cannot be used, or there are fewer than 20 clips.
    """
    matrix = probability_matrix(probs)
    if len(matrix) < _FEWEST_CLIPS:
        raise UserError(f"the threshold search needs at least {_FEWEST_CLIPS} clips, got {len(matrix)}")
    count = len(matrix) // 2
    tuning = np.sort(random.choice(len(matrix), size=count, replace=False))
    others = np.setdiff1d(np.arange(len(matrix)), tuning)
    pairs = tuple((float(lower), float(upper)) for lower in _LOWER for upper in _UPPER)
    scores = tuple(official_inception_score(matrix[tuning[_window(pair, count)]]) for pair in pairs)
    positive = [pair for pair, score in zip(pairs, scores, strict=True) if score > 0]
    if not positive:
        raise UserError("no window has an official Inception Score: a class has no probability in any clip")
    best = pairs[int(np.nanargmax(scores))]
    return ThresholdSearch(pairs, scores, positive[-1], best, tuning, others[_window(positive[-1], count)])


def state_after_modified_inception_score(clips: int) -> np.random.RandomState:
    """NumPy's legacy generator as the official mIS of ``clips`` clips leaves it: seed 0, then 10,000 pairs."""
    random = np.random.RandomState(0)
    random.choice(clips, size=(_PAIRS, 2))
    return random


def _window(pair: tuple[float, float], count: int) -> slice:
    return slice(int(pair[0] * count), int(pair[1] * count))


def _divergence(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """KL divergence in nats over the last axis, unclamped: 0 log 0 is 0, and a missing part makes it infinite."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(first == 0, 0.0, first * np.log(first / second)).sum(axis=-1)


def _matrix_root(matrix: np.ndarray) -> np.ndarray:
    try:
        from scipy.linalg import LinAlgWarning, sqrtm
    except ImportError:
        raise UserError('the official FID needs SciPy: pip install "sashimi-diffusion[eval]"') from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LinAlgWarning)  # what it warns of is what `official_frechet_distance` says
        return sqrtm(matrix)
