"""Fréchet distance between Gaussian fits of two feature sets (FID), and what it would be with infinitely many clips."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.metrics.arrays import feature_matrix, feature_pair


@dataclass(frozen=True, eq=False)
class Gaussian:
    """A normal distribution fitted to features.

    Attributes:
        mean: float64, shape (width,).
        factor: float64, shape (rank, width); ``factor.T @ factor`` is the covariance, divided by n - 1.
    """

    mean: np.ndarray
    factor: np.ndarray


@dataclass(frozen=True)
class FrechetExtrapolation:
    """Fréchet distances at several numbers of clips, and the end of the straight line through them.

    Attributes:
        sizes: numbers of clips, ascending.
        values: the distance at each, averaged over draws.
        limit: where the line in 1 / N ends at N → ∞; noise can carry it below 0.
    """

    sizes: tuple[int, ...]
    values: tuple[float, ...]
    limit: float


def fit_gaussian(features: ArrayLike) -> Gaussian:
    """Mean and covariance of features, the covariance as its triangular factor.

    The factor comes from a QR decomposition of the centred features: the covariance itself, whose small eigenvalues
    would drown in rounding, is never formed, and with fewer clips than columns nothing grows larger than the clips.

    Args:
        features: shape (clips, width), at least 2 clips.

    Raises:
        UserError: the array cannot be used, or there is one clip, which has no covariance.
    """
    matrix = feature_matrix(features, at_least=2)
    mean = matrix.mean(axis=0)
    return Gaussian(mean, np.linalg.qr(matrix - mean, mode="r") / np.sqrt(len(matrix) - 1))


def gaussian_frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """Squared Fréchet distance |μa - μb|² + tr A + tr B - 2 tr (AB)^½ of two normal distributions.

    With A = FᵀF and B = GᵀG, AB has the eigenvalues of (FGᵀ)(FGᵀ)ᵀ, so that tr (AB)^½ is the sum of the singular
    values of FGᵀ: real for every input, also where A or B is singular, and the same in both orders.
    """
    gap = a.mean - b.mean
    overlap = np.linalg.svd(a.factor @ b.factor.T, compute_uv=False).sum()
    return float(gap @ gap + np.square(a.factor).sum() + np.square(b.factor).sum() - 2 * overlap)


def frechet_distance(features_a: ArrayLike, features_b: ArrayLike) -> float:
    """Fréchet distance (FID) of two feature sets: Heusel et al. 2017, arXiv 1706.08500, eq. 6; covariances with n - 1.

    Its bias is upwards and shrinks like 1 / N: compare only values of equal N, or their extrapolations.

    Args:
        features_a: shape (clips, width), at least 2 clips.
        features_b: the same for the other set, of the same width; the order of the two does not matter.

    Returns:
        In squared units of the features; 0 for equal sets up to rounding, which may leave a value such as -1e-13.

    Raises:
        UserError: the arrays cannot be used, or one set has a single clip.
    """
    features_a, features_b = feature_pair(features_a, features_b, at_least=2)
    return gaussian_frechet_distance(fit_gaussian(features_a), fit_gaussian(features_b))


def frechet_extrapolation(
    reference: ArrayLike, features: ArrayLike, sizes: Sequence[int] | None = None, seed: int = 0, draws: int = 4
) -> FrechetExtrapolation:
    """Fréchet distance at several N and its limit for N → ∞: Chong & Forsyth 2020, arXiv 1911.07023.

    Subsets of ``features`` are drawn without replacement, ``reference`` stays whole. The bias is a straight line in
    1 / N only while N is well above the width of the features; below that, take the limit as a hint.

    Args:
        reference: shape (clips, width), at least 2 clips.
        features: shape (n, width).
        sizes: numbers of clips from 2 to n, two different ones or more. Default: eight from n / 5 to n, evenly spaced
            in 1 / N.
        seed: of the draws.
        draws: subsets of each size that are averaged; all n clips are one subset.

    Raises:
        UserError: the arrays or sizes cannot be used.
    """
    reference, features = feature_pair(reference, features, ("the reference", "the features"), at_least=2)
    counts = _checked_sizes(sizes, len(features))
    fitted, random = fit_gaussian(reference), np.random.default_rng(seed)
    values = []
    for count in counts:
        repeats = draws if count < len(features) else 1
        subsets = (random.choice(len(features), count, replace=False) for _ in range(repeats))
        distances = [gaussian_frechet_distance(fitted, fit_gaussian(features[subset])) for subset in subsets]
        values.append(float(np.mean(distances)))
    _, limit = np.polyfit(1 / np.asarray(counts), values, deg=1)
    return FrechetExtrapolation(counts, tuple(values), float(limit))


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
