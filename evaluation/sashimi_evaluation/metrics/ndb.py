"""Number of statistically different bins (NDB) and the Jensen-Shannon divergence of the histograms over the bins."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.metrics.arrays import feature_pair
from sashimi_evaluation.metrics.intervals import Interval, Resampling, Units, interval_about
from sashimi_evaluation.metrics.metric import Metric

_BINS = 50


@dataclass(frozen=True, eq=False)
class BinComparison:
    """Histograms of two sets of clips over the same bins.

    Attributes:
        share: fraction of the bins with significantly different proportions (NDB/K), from 0 to 1; about alpha for two
            sets of the same distribution.
        different: number of these bins (NDB).
        divergence: Jensen-Shannon divergence of the proportions, in bits, from 0 to 1.
        proportions_reference: fraction of the reference clips in each bin, float64, shape (bins,).
        proportions: fraction of the other clips in each bin, float64, shape (bins,).
    """

    share: float
    different: int
    divergence: float
    proportions_reference: np.ndarray
    proportions: np.ndarray


def ndb(
    features_reference: ArrayLike, features: ArrayLike, bins: int = 50, seed: int = 0, alpha: float = 0.05
) -> BinComparison:
    """Compare the histograms of two sets over k-means clusters of the reference (Richardson & Weiss 2018).

    arXiv 1805.12462; each cluster is a bin.

    Args:
        features_reference: shape (clips, width), at least as many clips as bins.
        features: shape (clips, width).
        bins: number of clusters.
        seed: seed of k-means.
        alpha: significance level of the two-proportion z-test.

    Raises:
        UserError: the arrays are invalid, there are fewer reference clips than bins, or scikit-learn is not installed.
    """
    reference, others = feature_pair(features_reference, features, ("the reference features", "the features"))
    if not 1 <= bins <= len(reference):
        raise UserError(f"bins must be between 1 and the number of reference clips ({len(reference)}), got {bins}")
    return compute_ndb(reference, others, bins, seed, alpha)


def compute_ndb(
    reference: np.ndarray, features: np.ndarray, bins: int = _BINS, seed: int = 0, alpha: float = 0.05
) -> BinComparison:
    """Return what :func:`ndb` returns, for validated arrays.

    Raises:
        UserError: scikit-learn is not installed.
    """
    return _compared(*_bins_of(reference, features, bins, seed), bins, alpha)


def _bins_of(reference: np.ndarray, features: np.ndarray, bins: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the bin of each reference clip, int64 (n,), and of each other clip, int64 (m,)."""
    with require_package("scikit-learn", "NDB"):
        from sklearn.cluster import KMeans
    clusters = KMeans(bins, n_init=1, random_state=seed).fit(reference)
    return clusters.predict(reference), clusters.predict(features)


def _compared(bins_reference: np.ndarray, bins_features: np.ndarray, bins: int, alpha: float = 0.05) -> BinComparison:
    proportions_reference, proportions = (
        np.bincount(each, minlength=bins) / len(each) for each in (bins_reference, bins_features)
    )
    differ = proportions_differ(proportions_reference, len(bins_reference), proportions, len(bins_features), alpha)
    divergence = jensen_shannon_divergence(proportions_reference, proportions)
    different = int(differ.sum())
    return BinComparison(different / bins, different, float(divergence), proportions_reference, proportions)


def proportions_differ(
    proportions_a: ArrayLike, count_a: int, proportions_b: ArrayLike, count_b: int, alpha: float = 0.05
) -> np.ndarray:
    """Apply the two-sided, pooled two-proportion z-test to each bin.

    Args:
        proportions_a: fraction of the clips of the first set in each bin, shape (..., bins).
        count_a: number of clips of the first set.
        proportions_b: the same for the second set, shape (..., bins).
        count_b: number of clips of the second set.
        alpha: significance level: a bin differs if its p-value is smaller.

    Returns:
        bool, shape (..., bins); False for bins that are empty in both sets, or contain all clips of both sets.

    Raises:
        UserError: SciPy is not installed.
    """
    with require_package("scipy", "the z-test"):
        from scipy.stats import norm
    a, b = np.asarray(proportions_a, dtype=np.float64), np.asarray(proportions_b, dtype=np.float64)
    pooled = (a * count_a + b * count_b) / (count_a + count_b)
    error = np.sqrt(np.maximum(pooled * (1 - pooled), 0) * (1 / count_a + 1 / count_b))
    scores = np.divide(np.abs(a - b), error, out=np.zeros_like(error), where=error > 0)
    return 2 * norm.sf(scores) < alpha


def jensen_shannon_divergence(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the Jensen-Shannon divergence in bits, from 0 to 1: the mean KL divergence from the mean distribution.

    Args:
        first: proportions, shape (..., bins).
        second: proportions, shape (..., bins).

    Returns:
        float64, shape (...).

    Raises:
        UserError: SciPy is not installed.
    """
    # Not scipy.spatial.distance.jensenshannon: its square root is NaN if rounding makes the divergence negative.
    with require_package("scipy", "the divergence"):
        from scipy.special import rel_entr
    middle = (first + second) / 2
    return (rel_entr(first, middle) + rel_entr(second, middle)).sum(axis=-1) / (2 * np.log(2))


def ndb_metrics(reference: np.ndarray, features: np.ndarray, resampling: Resampling) -> list[Metric]:
    """Return NDB/K and the Jensen-Shannon divergence over 50 bins.

    Args:
        reference: features of the real clips, (n, d).
        features: features of the clips to evaluate, (m, d).
        resampling: settings of the confidence intervals; its seed is also the seed of k-means.
    """
    if min(len(reference), len(features)) < _BINS:
        note = f"needs at least {_BINS} clips in each set"
        return [Metric("ndb", "NDB/K", None, better="lower", note=note)]
    try:
        bins = _bins_of(reference, features, _BINS, resampling.seed)
    except UserError as error:  # scikit-learn is not installed
        return [Metric("ndb", "NDB/K", None, better="lower", note=str(error))]
    result = _compared(*bins, _BINS)
    share, divergence = _intervals(result, *bins, resampling)
    note = f"fraction of {_BINS} bins; about 0.05 for two sets of the same distribution"
    if resampling.clips is not None:
        note += ", and above it for excerpts, because those of one recording are alike"
    title = "Jensen-Shannon divergence of the bins (bits)"
    return [
        Metric("ndb", "NDB/K", result.share, share, "lower", note),
        Metric("jsd", title, result.divergence, divergence, "lower"),
    ]


@contextmanager
def require_package(package: str, what: str) -> Iterator[None]:
    """Raise a UserError that says that ``what`` needs a package if an import in the block fails."""
    try:
        yield
    except ImportError:
        raise UserError(f"{what} needs {package}: pip install {package}") from None


def _intervals(
    result: BinComparison, bins_reference: np.ndarray, bins_features: np.ndarray, resampling: Resampling
) -> tuple[Interval, Interval]:
    """Return the intervals of the share and of the divergence: clips are resampled, the bins stay the same."""
    random, (of_reference, of_clips) = np.random.default_rng(resampling.seed), resampling.both
    first = _resampled(bins_reference, result.proportions_reference, of_reference, resampling.resamples, random)
    second = _resampled(bins_features, result.proportions, of_clips, resampling.resamples, random)
    shares = proportions_differ(first, len(bins_reference), second, len(bins_features)).mean(axis=-1)
    divergences = jensen_shannon_divergence(first, second)
    return (
        interval_about(result.share, shares).clipped(0, 1),
        interval_about(result.divergence, divergences).clipped(0, 1),
    )


def _resampled(
    bins: np.ndarray, proportions: np.ndarray, units: Units, resamples: int, random: np.random.Generator
) -> np.ndarray:
    """Return the proportions of the bins in resamples of clips, or of whole recordings, float64 (resamples, bins)."""
    if units is None:
        return random.multinomial(len(bins), proportions, size=resamples) / len(bins)
    _, recordings = np.unique(units, return_inverse=True)
    counts = np.zeros((recordings.max() + 1, len(proportions)))  # (recordings, bins)
    np.add.at(counts, (recordings, bins), 1)
    number = len(counts)
    drawn = random.multinomial(number, np.full(number, 1 / number), size=resamples) @ counts
    return drawn / drawn.sum(axis=1, keepdims=True)
