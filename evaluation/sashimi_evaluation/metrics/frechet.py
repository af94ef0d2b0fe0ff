"""Fréchet distance between Gaussian fits of two feature sets (FID), and its extrapolation to infinitely many clips."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.metrics.arrays import feature_pair
from sashimi_evaluation.metrics.intervals import Interval, Resampling
from sashimi_evaluation.metrics.metric import FEW_CLIPS, Metric


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A normal distribution fitted to features.

    Attributes:
        mean: float64, shape (width,).
        factor: float64, shape (rank, width); ``factor.T @ factor`` is the covariance with the divisor n - 1.
    """

    mean: np.ndarray
    factor: np.ndarray


@dataclass(frozen=True)
class FrechetExtrapolation:
    """Fréchet distances at several numbers of clips, and the limit of the line fitted to them.

    Attributes:
        sizes: numbers of clips, ascending.
        values: the distance at each number of clips, averaged over random subsets.
        limit: value at N → ∞ of the line that is fitted to the values as a function of 1 / N; may be negative.
    """

    sizes: tuple[int, ...]
    values: tuple[float, ...]
    limit: float


def frechet_distance(features_a: ArrayLike, features_b: ArrayLike) -> float:
    """Return the Fréchet distance (FID) of two feature sets: Heusel et al. 2017, arXiv 1706.08500, eq. 6.

    Covariances have the divisor n - 1. The bias is positive and proportional to 1 / N, where N is the number of clips:
    compare only values with equal N, or their extrapolations.

    Args:
        features_a: shape (clips, width), at least 2 clips.
        features_b: shape (clips, width), at least 2 clips. The distance is symmetric.

    Returns:
        The distance in squared units of the features. Rounding may leave a value such as -1e-13 for equal sets.

    Raises:
        UserError: the arrays are invalid, or a set has fewer than 2 clips.
    """
    return _frechet_distance(*feature_pair(features_a, features_b, at_least=2))


def frechet_extrapolation(
    reference: ArrayLike, features: ArrayLike, sizes: Sequence[int] | None = None, seed: int = 0, draws: int = 4
) -> FrechetExtrapolation:
    """Return the Fréchet distance at several N and its limit for N → ∞: Chong & Forsyth 2020, arXiv 1911.07023.

    Subsets of ``features`` are drawn without replacement; ``reference`` is always used completely. The bias is linear
    in 1 / N only if N is well above the width of the features; otherwise the limit is unreliable.

    Args:
        reference: shape (clips, width), at least 2 clips.
        features: shape (n, width).
        sizes: numbers of clips from 2 to n, at least two different ones. Default: eight from n / 5 to n, evenly spaced
            in 1 / N.
        seed: seed of the random subsets.
        draws: number of subsets per size that are averaged. Size n needs only one.

    Raises:
        UserError: the arrays or sizes are invalid.
    """
    reference, features = feature_pair(reference, features, ("the reference", "the features"), at_least=2)
    return _extrapolate(reference, features, _checked_sizes(sizes, len(features)), seed, draws)


def fit_gaussian(features: np.ndarray) -> Gaussian:
    """Return the mean and the triangular factor of the covariance of features, (clips, width), at least 2 clips.

    The factor comes from a QR decomposition of the centered features. The covariance itself is never formed, because
    rounding would destroy its small eigenvalues. With fewer clips than columns the factor is as small as the features.
    """
    mean = features.mean(axis=0)
    return Gaussian(mean, np.linalg.qr(features - mean, mode="r") / np.sqrt(len(features) - 1))


def gaussian_frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Return the squared Fréchet distance |μa - μb|² + tr A + tr B - 2 tr (AB)^½ of two normal distributions.

    With A = FᵀF and B = GᵀG, AB has the eigenvalues of (FGᵀ)(FGᵀ)ᵀ, so tr (AB)^½ is the sum of the singular values of
    FGᵀ. It is real for every input, also if A or B is singular, and symmetric in A and B.
    """
    gap = a.mean - b.mean
    overlap = np.linalg.svd(a.factor @ b.factor.T, compute_uv=False).sum()
    return float(gap @ gap + np.square(a.factor).sum() + np.square(b.factor).sum() - 2 * overlap)


def frechet_metrics(
    reference: np.ndarray, features: np.ndarray, resampling: Resampling, name: str = "FID"
) -> list[Metric]:
    """Return FID and, if there are enough clips, its extrapolation to N → ∞.

    Args:
        reference: features of the real clips, (n, d), at least 2 clips.
        features: features of the clips to evaluate, (m, d), at least 2 clips.
        resampling: settings of the confidence intervals.
        name: name of the distance in tables; that of features for all kinds of audio is called FAD.
    """
    interval = resampling.interval(_frechet_distance, reference, features, low=0)
    note = _note(min(len(reference), len(features)), features.shape[1])
    metrics = [Metric("fid", name, _frechet_distance(reference, features), interval, "lower", note)]
    sizes = _extrapolation_sizes(*features.shape)
    if sizes:
        line = _extrapolate(reference, features, sizes, resampling.seed, draws=4)
        values = ", ".join(f"{value:.3f} at {size}" for size, value in zip(line.sizes, line.values, strict=True))
        interval = _limit_interval(reference, features, line, resampling)
        metrics.append(Metric("fid_infinity", f"{name} extrapolated to N = ∞", line.limit, interval, "lower", values))
    return metrics


def _note(clips: int, width: int) -> str:
    if clips <= width:
        return f"unreliable: {clips} clips for {width} feature dimensions"
    return f"biased upwards at N = {clips}" if clips < FEW_CLIPS else ""


def _extrapolation_sizes(clips: int, width: int) -> tuple[int, ...]:
    """Return up to eight numbers of clips above the feature width, evenly spaced in 1 / N; none if N is too small."""
    smallest = max(clips // 5, width + 1)
    if smallest > 0.75 * clips:
        return ()
    return _checked_sizes([round(1 / inverse) for inverse in np.linspace(1 / smallest, 1 / clips, 8)], clips)


def _limit_interval(
    reference: np.ndarray, features: np.ndarray, line: FrechetExtrapolation, resampling: Resampling
) -> Interval:
    """Return the interval of the limit.

    It is the bootstrap interval of the limit of the smallest and the largest size, shifted to the limit of all sizes.
    Two sizes instead of eight save time and make the interval slightly too wide.
    """
    share = line.sizes[0] / line.sizes[-1]

    def two_point_limit(reference: np.ndarray, features: np.ndarray) -> float:
        count = len(features)  # of a resample; it varies if whole recordings are drawn
        smaller = max(2, round(share * count))
        if smaller >= count:
            return _frechet_distance(reference, features)
        return _extrapolate(reference, features, (smaller, count), resampling.seed, draws=1).limit

    interval = resampling.interval(two_point_limit, reference, features)
    return interval.shifted(line.limit - two_point_limit(reference, features))


def _frechet_distance(features_a: np.ndarray, features_b: np.ndarray) -> float:
    return gaussian_frechet_distance(fit_gaussian(features_a), fit_gaussian(features_b))


def _extrapolate(
    reference: np.ndarray, features: np.ndarray, sizes: tuple[int, ...], seed: int, draws: int
) -> FrechetExtrapolation:
    fitted, random = fit_gaussian(reference), np.random.default_rng(seed)
    values = []
    for size in sizes:
        repeats = draws if size < len(features) else 1
        subsets = (random.choice(len(features), size, replace=False) for _ in range(repeats))
        distances = [gaussian_frechet_distance(fitted, fit_gaussian(features[subset])) for subset in subsets]
        values.append(float(np.mean(distances)))
    _, limit = np.polyfit(1 / np.asarray(sizes), values, deg=1)
    return FrechetExtrapolation(sizes, tuple(values), float(limit))


def _checked_sizes(sizes: Sequence[int] | None, clips: int) -> tuple[int, ...]:
    if sizes is None:
        sizes = [max(2, round(clips / part)) for part in np.linspace(5, 1, 8)]
    counts = tuple(sorted({int(size) for size in sizes}))
    if len(counts) < 2 or counts[0] < 2 or counts[-1] > clips:
        raise UserError(
            f"an extrapolation needs two or more different sizes between 2 and the number of clips ({clips}), "
            f"got {', '.join(map(str, counts)) or 'none'}"
        )
    return counts
