"""Kernel distances between two feature sets (KID, KAD): the unbiased squared maximum mean discrepancy."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.metrics.arrays import feature_pair
from sashimi_evaluation.metrics.distances import row_blocks, squared_distances
from sashimi_evaluation.metrics.intervals import (
    Interval,
    Resampling,
    Units,
    check_level,
    check_resamples,
    interval_about,
    row_sampler,
)
from sashimi_evaluation.metrics.metric import Metric

_MEDIAN_CLIPS = 4096

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]


def kernel_distance(features_a: ArrayLike, features_b: ArrayLike, kernel: str = "polynomial") -> float:
    """Return the unbiased squared maximum mean discrepancy, Gretton et al. 2012, eq. 3, over all clips.

    ``"polynomial"`` is the Kernel Inception Distance with k(x, y) = (x·y / width + 1)³ (Bińkowski et al. 2018, arXiv
    1801.01401, section 4), not averaged over subsets. It grows with the sixth power of the scale of the features.

    ``"rbf"`` is the Kernel Audio Distance with k(x, y) = exp(-‖x - y‖² / 2σ²) (Chung et al. 2025, arXiv 2502.15602).
    σ is the median distance between two clips of ``features_a``; it is estimated from 4096 evenly spaced clips if there
    are more. The distance does not depend on the scale of the features, but it is not symmetric. The authors' toolkit
    reports this value times 100.

    For two sets of the same distribution the expectation of both is 0 at any number of clips, so values are often
    negative. Memory is bounded: pairs of clips are processed in blocks.

    Args:
        features_a: the reference, shape (clips, width), at least 2 clips.
        features_b: shape (clips, width), at least 2 clips.
        kernel: "polynomial" or "rbf".

    Raises:
        UserError: the arrays are invalid, the kernel is unknown, or the median distance in the reference is 0.
    """
    features_a, features_b = feature_pair(features_a, features_b, at_least=2)
    weights = np.ones((len(features_a), 1)), np.ones((len(features_b), 1))
    return float(_discrepancies(features_a, features_b, *weights, _kernel(kernel, features_a))[0])


def kernel_distance_with_interval(
    features_a: ArrayLike,
    features_b: ArrayLike,
    kernel: str = "polynomial",
    resamples: int = 200,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, Interval]:
    """Return ``kernel_distance`` and its interval (see :func:`.intervals.bootstrap`) in one pass over the pairs.

    A clip that is drawn w times has the weight w. Pairs of a clip with itself are left out, because they would bias
    the value. All resamples use the bandwidth σ of the whole reference. If both sets come from one distribution, the
    interval is almost twice as wide as necessary.

    Args:
        features_a: the reference, shape (clips, width), at least 2 clips.
        features_b: shape (clips, width), at least 2 clips.
        kernel: "polynomial" or "rbf".
        resamples: number of resampled values, at least 2.
        seed: the same seed gives the same interval.
        level: confidence level, between 0 and 1.

    Raises:
        UserError: as ``kernel_distance``, or a number is out of its range.
    """
    features_a, features_b = feature_pair(features_a, features_b, at_least=2)
    check_resamples(resamples)
    check_level(level)
    return _distance_with_interval(features_a, features_b, kernel, Resampling(resamples, seed), level)


def kernel_metrics(reference: np.ndarray, features: np.ndarray, resampling: Resampling) -> list[Metric]:
    """Return KID and KAD.

    Args:
        reference: features of the real clips, (n, d), at least 2 clips.
        features: features of the clips to evaluate, (m, d), at least 2 clips.
        resampling: settings of the confidence intervals.

    Raises:
        UserError: the median distance in the reference is 0.
    """
    metrics = []
    for key, title, kernel in (("kid", "KID", "polynomial"), ("kad", "KAD", "rbf")):
        value, interval = _distance_with_interval(reference, features, kernel, resampling)
        metrics.append(Metric(key, title, value, interval, "lower", "unbiased: can be negative"))
    return metrics


def _distance_with_interval(
    a: np.ndarray, b: np.ndarray, kernel: str, resampling: Resampling, level: float = 0.95
) -> tuple[float, Interval]:
    random = np.random.default_rng(resampling.seed)
    of_a, of_b = resampling.both
    weights = _weights(len(a), resampling.resamples, random, of_a), _weights(len(b), resampling.resamples, random, of_b)
    values = _discrepancies(a, b, *weights, _kernel(kernel, a))
    return float(values[0]), interval_about(float(values[0]), values[1:], level)


def _weights(clips: int, resamples: int, random: np.random.Generator, units: Units) -> np.ndarray:
    """Return the weight of each clip, shape (clips, 1 + resamples): 1 in column 0, then its count in each resample."""
    draw = row_sampler(clips, units)
    drawn = [np.bincount(draw(random), minlength=clips) for _ in range(resamples)]
    return np.stack([np.ones(clips), *drawn], axis=1)


def _discrepancies(
    a: np.ndarray, b: np.ndarray, weights_a: np.ndarray, weights_b: np.ndarray, kernel: Kernel
) -> np.ndarray:
    """Return the squared discrepancy for each column of weights.

    Args:
        a: features, shape (clips_a, width).
        b: features, shape (clips_b, width).
        weights_a: weights of the clips of ``a``, shape (clips_a, columns).
        weights_b: weights of the clips of ``b``, shape (clips_b, columns).
        kernel: function of two blocks of features.

    Returns:
        float64, shape (columns,).
    """
    within = _mean_within(a, weights_a, kernel) + _mean_within(b, weights_b, kernel)
    return within - 2 * _mean_between(a, b, weights_a, weights_b, kernel)


def _mean_within(features: np.ndarray, weights: np.ndarray, kernel: Kernel) -> np.ndarray:
    total = np.zeros(weights.shape[1])
    for block in row_blocks(len(features), len(features)):
        values = kernel(features[block], features)
        values[np.arange(len(values)), np.arange(block.start, block.stop)] = 0
        total += np.einsum("ir,ir->r", weights[block], values @ weights)
    pairs = np.square(weights.sum(axis=0)) - np.square(weights).sum(axis=0)
    # A resample of very few clips may repeat a single one: it has no pairs, so it contributes 0.
    return np.divide(total, pairs, out=np.zeros_like(total), where=pairs > 0)


def _mean_between(
    a: np.ndarray, b: np.ndarray, weights_a: np.ndarray, weights_b: np.ndarray, kernel: Kernel
) -> np.ndarray:
    total = np.zeros(weights_a.shape[1])
    for block in row_blocks(len(a), len(b)):
        total += np.einsum("ir,ir->r", weights_a[block], kernel(a[block], b) @ weights_b)
    return total / (weights_a.sum(axis=0) * weights_b.sum(axis=0))


def _kernel(name: str, reference: np.ndarray) -> Kernel:
    if name == "polynomial":
        return _polynomial
    if name == "rbf":
        gamma = 0.5 / _median_distance(reference) ** 2
        return lambda x, y: np.exp(-gamma * squared_distances(x, y))
    raise UserError(f"unknown kernel {name!r}: expected polynomial or rbf")


def _polynomial(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    base = x @ y.T / x.shape[1] + 1
    return base * base * base


def _median_distance(features: np.ndarray) -> float:
    if len(features) > _MEDIAN_CLIPS:
        features = features[np.linspace(0, len(features) - 1, _MEDIAN_CLIPS).round().astype(int)]
    pairs = np.triu(np.ones((len(features), len(features)), dtype=bool), k=1)
    median = float(np.median(np.sqrt(squared_distances(features, features)[pairs])))
    if median == 0:
        raise UserError("the median distance in the reference is 0: more than half of its pairs of clips are equal")
    return median
