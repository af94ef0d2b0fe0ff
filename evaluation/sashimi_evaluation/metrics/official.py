"""The SC09 metrics of the official SaShiMi repository, including its errors, to compare with published values.

They follow ``models/sashimi/metrics.py`` and ``sc09_classifier/test_speech_commands.py`` of state-spaces/s4. Its AM
score is ``.inception.am_score``. Random numbers come from NumPy's legacy generator. The official code seeds it
globally; here every function has its own generator.
"""

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.metrics.arrays import feature_pair, probability_matrix
from sashimi_evaluation.metrics.inception import compute_am_score
from sashimi_evaluation.metrics.metric import Metric
from sashimi_evaluation.metrics.ndb import compute_ndb, ndb, require_package

_PAIRS = 10_000
_BINS = 50
_LOWER = np.arange(0.0, 0.5, 0.1)
_UPPER = np.arange(0.6, 1.0, 0.05)
_MIN_CLIPS = 20  # the narrowest window of the search, a fifth of one half, then contains two clips
_NOT_THE_SCORE = "not the Inception Score: its entropy is over the clips, so missing classes have little effect"


@dataclass(frozen=True, eq=False)
class ThresholdSearch:
    """A search for the likelihood window with the best official Inception Score.

    Attributes:
        pairs: the windows (lower, upper) of the search. A window keeps the clips between these two fractions of the
            clips in ascending order of likelihood.
        scores: official Inception Score of each window on the tuning half.
        selected: the window that the official code selects, which is the last one instead of the best.
        best: the window with the best score.
        tuning: indices of the clips of the tuning half, int64, ascending.
        kept: indices of the clips of the other half that are inside ``selected``, int64, ascending.
    """

    pairs: tuple[tuple[float, float], ...]
    scores: tuple[float, ...]
    selected: tuple[float, float]
    best: tuple[float, float]
    tuning: np.ndarray
    kept: np.ndarray


def official_inception_score(probs: ArrayLike) -> float:
    """Return the official "IS", which is not the Inception Score.

    Its entropy is over the clips instead of the classes (SciPy's default axis): each class column of a random half of
    the clips is normalized over the clips and compared with a constant. The other half of the clips has no effect. The
    marginal distribution of the classes has no effect either, so missing classes are hardly penalized, and the value
    may exceed the number of classes. It is close to the Inception Score only if the classes are balanced.

    Args:
        probs: shape (clips, classes), at least 2 clips; rows sum to 1.

    Returns:
        exp of the mean over the classes; NaN if the probability of a class is 0 in all clips, as in the official code.

    Raises:
        UserError: the array is invalid, or there are fewer than 2 clips.
    """
    matrix = probability_matrix(probs)
    if len(matrix) < 2:
        raise UserError("the official Inception Score halves the clips: it needs at least 2, got 1")
    return _inception_score(matrix)


def official_modified_inception_score(probs: ArrayLike, pairs: int = _PAIRS, seed: int = 0) -> float:
    """Return the official "mIS": exp of the mean KL(p_i ‖ p_j) over random pairs, drawn with replacement.

    It is a random estimate of ``.inception.modified_classifier_score``, which is exact; its standard deviation is a few
    per cent. Probabilities are not clamped: a pair with p_j = 0 and p_i > 0 makes it infinite.

    Args:
        probs: shape (clips, classes), rows sum to 1.
        pairs: number of pairs.
        seed: seed of NumPy's legacy generator.

    Raises:
        UserError: the array is invalid.
    """
    return _modified_inception_score(probability_matrix(probs), pairs, seed)


def official_ndb(features_reference: ArrayLike, features: ArrayLike) -> float:
    """Return the official NDB/K, which is that of ``.ndb.ndb`` with 50 bins, seed 0 and significance level 0.05.

    Args:
        features_reference: shape (clips, width), at least 50 clips.
        features: shape (clips, width).

    Returns:
        The fraction of the bins that differ, from 0 to 1.

    Raises:
        UserError: as ``ndb``.
    """
    return ndb(features_reference, features, bins=_BINS, seed=0, alpha=0.05).share


def official_frechet_distance(features_a: ArrayLike, features_b: ArrayLike) -> float:
    """Return the official FID, with SciPy's square root of the product of the covariances.

    It equals ``.frechet.frechet_distance`` if both covariances have full rank. With fewer clips than columns the
    product is singular and its square root is ill-conditioned: the result is inaccurate (by 1e-6 for 100 clips with 128
    features). The official code then returns a complex number; its real part is returned here. If the root is not
    finite, 1e-4 is added to both diagonals.

    Args:
        features_a: shape (clips, width), at least 2 clips.
        features_b: shape (clips, width), at least 2 clips.

    Raises:
        UserError: the arrays are invalid, or SciPy is not installed.
    """
    return _frechet_distance(*feature_pair(features_a, features_b, at_least=2))


def official_threshold_search(probs: ArrayLike, random: np.random.RandomState) -> ThresholdSearch:
    """Run the official search for a likelihood window; its result is always (0.4, 0.95).

    The search tries 40 windows on a random half of the clips and applies the selected one to the other half. The error
    of the official code: it never stores the best score, so every window with a positive score replaces the previous
    one, and the last one is selected.

    Args:
        probs: class probabilities of clips in ascending order of likelihood, shape (clips, classes), at least 20 clips.
        random: generator that draws the half. The official script uses it first for the mIS of the test set, so its
            state then is that of ``state_after_modified_inception_score``.

    Raises:
        UserError: the array is invalid, or there are fewer than 20 clips.
    """
    matrix = probability_matrix(probs)
    if len(matrix) < _MIN_CLIPS:
        raise UserError(f"the threshold search needs at least {_MIN_CLIPS} clips, got {len(matrix)}")
    return _threshold_search(matrix, random)


def state_after_modified_inception_score(clips: int) -> np.random.RandomState:
    """Return NumPy's legacy generator with seed 0 after it has drawn the 10,000 pairs of the mIS of ``clips`` clips."""
    random = np.random.RandomState(0)
    random.choice(clips, size=(_PAIRS, 2))
    return random


def official_metrics(
    reference_features: np.ndarray,
    reference_probabilities: np.ndarray,
    features: np.ndarray,
    probabilities: np.ndarray,
    log_likelihoods: np.ndarray,
) -> list[Metric]:
    """Return FID, IS, mIS, AM and NDB of the official code, of all clips and after its rejection by likelihood.

    Args:
        reference_features: features of the real clips, (n, d); the official script uses the training set.
        reference_probabilities: class probabilities of the real clips, (n, classes).
        features: features of the clips to evaluate, (m, d); the papers use 2,048 clips, or 10,240 clips of
            autoregressive models.
        probabilities: class probabilities of the clips to evaluate, (m, classes).
        log_likelihoods: log-likelihoods of the clips to evaluate, (m,). With a NaN, or with fewer than 20 clips, the
            metrics after rejection are left out.

    Raises:
        UserError: scikit-learn or SciPy is not installed.
    """
    reference = reference_features, reference_probabilities
    metrics = _metrics(*reference, features, probabilities, rejection=False)
    if not np.isfinite(log_likelihoods).all() or len(features) < _MIN_CLIPS:
        return metrics
    order = np.argsort(log_likelihoods, kind="stable")
    # The official script draws the pairs of its test set's mIS first, so the random half depends on the size of that
    # set. There is no test set here: the reference takes its place.
    random = state_after_modified_inception_score(len(reference_features))
    kept = order[_threshold_search(probabilities[order], random).kept]
    return [*metrics, *_metrics(*reference, features[kept], probabilities[kept], rejection=True)]


def _metrics(
    reference_features: np.ndarray,
    reference_probabilities: np.ndarray,
    features: np.ndarray,
    probabilities: np.ndarray,
    rejection: bool,
) -> list[Metric]:
    key_end, title_end = ("_rejection", " after rejection by likelihood") if rejection else ("", "")
    smaller, width = min(len(reference_features), len(features)), features.shape[1]
    if smaller < 2:
        note = "needs at least two clips in each set"
        return [Metric(f"official_fid{key_end}", "FID (official)", None, better="lower", note=note)]

    def metric(key: str, title: str, value: float, better: Literal["lower", "higher"], note: str = "") -> Metric:
        key, title = f"official_{key}{key_end}", f"{title}{title_end}"
        if not np.isfinite(value):
            note = f"{value}, as in the official code; {note}".rstrip("; ")
            return Metric(key, title, None, better=better, note=note)
        return Metric(key, title, value, better=better, note=note)

    singular = f"unreliable: {smaller} clips for {width} feature dimensions" if smaller <= width else ""
    modified = _modified_inception_score(probabilities, _PAIRS, seed=0)
    metrics = [
        metric("fid", "FID (official)", _frechet_distance(reference_features, features), "lower", singular),
        metric("is", "IS (official)", _inception_score(probabilities), "higher", _NOT_THE_SCORE),
        metric("mis", "mIS (official)", modified, "higher", "an estimate from 10,000 random pairs, seed 0"),
        metric("am", "AM", compute_am_score(reference_probabilities, probabilities), "lower"),
    ]
    if smaller >= _BINS:
        metrics.append(metric("ndb", "NDB/K", compute_ndb(reference_features, features, _BINS).share, "lower"))
    return metrics


def _inception_score(probabilities: np.ndarray) -> float:
    half = probabilities[np.random.RandomState(0).permutation(len(probabilities))][: len(probabilities) // 2]
    with np.errstate(invalid="ignore"):
        columns = half / half.sum(axis=0)
    return float(np.exp(_divergence(columns.T, np.full(columns.T.shape, 1 / len(half))).mean()))


def _modified_inception_score(probabilities: np.ndarray, pairs: int, seed: int) -> float:
    first, second = np.random.RandomState(seed).choice(len(probabilities), size=(pairs, 2)).T
    return float(np.exp(_divergence(probabilities[first], probabilities[second]).mean()))


def _frechet_distance(features_a: np.ndarray, features_b: np.ndarray) -> float:
    gap = features_a.mean(axis=0) - features_b.mean(axis=0)
    first, second = np.atleast_2d(np.cov(features_a.T)), np.atleast_2d(np.cov(features_b.T))
    root = _matrix_root(first @ second)
    if not np.isfinite(root).all():
        offset = 1e-4 * np.eye(len(first))
        root = _matrix_root((first + offset) @ (second + offset))
    return float(gap @ gap + np.trace(first) + np.trace(second) - 2 * np.trace(root).real)


def _threshold_search(probabilities: np.ndarray, random: np.random.RandomState) -> ThresholdSearch:
    clips, count = len(probabilities), len(probabilities) // 2
    tuning = np.sort(random.choice(clips, size=count, replace=False))
    others = np.setdiff1d(np.arange(clips), tuning)
    pairs = tuple((float(lower), float(upper)) for lower in _LOWER for upper in _UPPER)
    scores = tuple(_inception_score(probabilities[tuning[_window(pair, count)]]) for pair in pairs)
    positive = [pair for pair, score in zip(pairs, scores, strict=True) if score > 0]
    if not positive:
        raise UserError("no window has an official Inception Score: the probability of a class is 0 in all clips")
    best = pairs[int(np.nanargmax(scores))]
    return ThresholdSearch(pairs, scores, positive[-1], best, tuning, others[_window(positive[-1], count)])


def _window(pair: tuple[float, float], count: int) -> slice:
    return slice(int(pair[0] * count), int(pair[1] * count))


def _divergence(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the KL divergence in nats over the last axis, with 0 log 0 = 0 and infinity for a division by zero."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(first == 0, 0.0, first * np.log(first / second)).sum(axis=-1)


def _matrix_root(matrix: np.ndarray) -> np.ndarray:
    with require_package("scipy", "the official FID"):
        from scipy.linalg import LinAlgWarning, sqrtm
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LinAlgWarning)  # about singular matrices, see `official_frechet_distance`
        return sqrtm(matrix)
