"""Number of statistically different bins (NDB) and the divergence of the two histograms over them."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.metrics.arrays import feature_pair


@dataclass(frozen=True, eq=False)
class BinComparison:
    """Two sets of clips over the same bins.

    Attributes:
        share: of bins whose proportions differ significantly (NDB/K), from 0 to 1; about alpha for equal sets.
        different: their number (NDB).
        divergence: Jensen-Shannon divergence of the proportions, in bits, from 0 to 1.
        proportions_reference: float64, shape (bins,).
        proportions: float64, shape (bins,).
    """

    share: float
    different: int
    divergence: float
    proportions_reference: np.ndarray
    proportions: np.ndarray


def ndb(
    features_reference: ArrayLike, features: ArrayLike, bins: int = 50, seed: int = 0, alpha: float = 0.05
) -> BinComparison:
    """Bins (k-means clusters of the reference) that the other set fills differently: Richardson & Weiss 2018,
    arXiv 1805.12462.

    Args:
        features_reference: shape (clips, width), at least as many clips as bins.
        features: shape (clips, width).
        bins: number of clusters.
        seed: of k-means.
        alpha: significance of the two-proportion z-test.

    Raises:
        UserError: the arrays cannot be used, fewer reference clips than bins, or scikit-learn is not installed.
    """
    names = ("the reference features", "the features")
    reference, others = feature_pair(features_reference, features, names)
    if not 1 <= bins <= len(reference):
        raise UserError(f"bins must be between 1 and the number of reference clips ({len(reference)}), got {bins}")
    clusters = _k_means()(bins, n_init=1, random_state=seed).fit(reference)
    shares = [np.bincount(clusters.predict(each), minlength=bins) / len(each) for each in (reference, others)]
    different = int(proportions_differ(shares[0], len(reference), shares[1], len(others), alpha).sum())
    return BinComparison(different / bins, different, jensen_shannon_divergence(*shares), *shares)


def proportions_differ(
    proportions_a: ArrayLike, count_a: int, proportions_b: ArrayLike, count_b: int, alpha: float = 0.05
) -> np.ndarray:
    """Two-sided, pooled two-proportion z-test for each bin.

    Args:
        proportions_a: shares of ``count_a`` clips, shape (bins,).
        count_a: number of clips.
        proportions_b: shares of ``count_b`` clips, shape (bins,).
        count_b: number of clips.
        alpha: a bin differs if its p-value is below this.

    Returns:
        bool, shape (bins,); False for bins that are empty in both, or hold everything in both.
    """
    a, b = np.asarray(proportions_a, dtype=np.float64), np.asarray(proportions_b, dtype=np.float64)
    pooled = (a * count_a + b * count_b) / (count_a + count_b)
    error = np.sqrt(np.maximum(pooled * (1 - pooled), 0) * (1 / count_a + 1 / count_b))
    scores = np.divide(np.abs(a - b), error, out=np.zeros_like(error), where=error > 0)
    return np.asarray([math.erfc(score / math.sqrt(2)) < alpha for score in scores], dtype=bool)


def jensen_shannon_divergence(first: np.ndarray, second: np.ndarray) -> float:
    """Mean KL divergence of two distributions, shape (bins,) each, from their mean; in bits, from 0 to 1."""
    middle = (first + second) / 2
    return float((_divergence_bits(first, middle) + _divergence_bits(second, middle)) / 2)


def _divergence_bits(first: np.ndarray, second: np.ndarray) -> float:
    filled = first > 0
    return float((first[filled] * np.log2(first[filled] / second[filled])).sum())


def _k_means() -> type:
    try:
        from sklearn.cluster import KMeans
    except ImportError:
        raise UserError('the bins need scikit-learn: pip install "sashimi-diffusion[eval]"') from None
    return KMeans
