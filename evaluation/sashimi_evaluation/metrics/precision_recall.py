"""Precision, recall, density and coverage from the nearest neighbors of clips in feature space."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.metrics.arrays import feature_pair
from sashimi_evaluation.metrics.distances import row_blocks, squared_distances
from sashimi_evaluation.metrics.intervals import Resampling
from sashimi_evaluation.metrics.metric import Metric

# Neighborhoods are open balls. This factor keeps a clip on the boundary outside of the ball in spite of rounding.
_INSIDE = 1 - 1e-9
_NEIGHBORS = 5


@dataclass(frozen=True)
class PrecisionRecall:
    """Precision, recall, density and coverage of samples; all but density lie between 0 and 1.

    Attributes:
        precision: fraction of the samples that lie in the neighborhood of a reference clip.
        recall: fraction of the reference clips that lie in the neighborhood of a sample.
        density: mean number of reference neighborhoods that contain a sample, divided by k; may exceed 1.
        coverage: fraction of the reference clips whose neighborhood contains a sample.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall_density_coverage(reference: ArrayLike, samples: ArrayLike, k: int = 5) -> PrecisionRecall:
    """Return improved precision and recall, density and coverage of samples.

    Precision and recall: Kynkäänniemi et al. 2019, arXiv 1904.06991, equations 1 and 2. Density and coverage: Naeem et
    al. 2020, arXiv 2002.09797.

    The neighborhood of a clip is an open ball around it. The radius is the distance to the k-th nearest neighbor in the
    same set; the clip itself does not count as a neighbor. All four values are 1 if a set without duplicates is
    compared with itself.

    Args:
        reference: shape (clips, width), more than k clips.
        samples: shape (clips, width), more than k clips.
        k: rank of the neighbor that defines the radius, at least 1.

    Raises:
        UserError: the arrays are invalid, or k is out of range.
    """
    parts = precision_recall_density_coverage_per_item(reference, samples, k)
    return PrecisionRecall(*(float(part.mean()) for part in parts))


def precision_recall_density_coverage_per_item(
    reference: ArrayLike, samples: ArrayLike, k: int = 5
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the contribution of each clip; the means are the results of ``precision_recall_density_coverage``.

    Resampling an array gives the confidence interval of its mean for fixed neighborhoods.

    Returns:
        Precision (samples,), recall (references,), density (samples,) and coverage (references,), float64.

    Raises:
        UserError: as ``precision_recall_density_coverage``.
    """
    if k < 1:
        raise UserError(f"k must be at least 1, got {k}")
    return _per_item(*feature_pair(reference, samples, ("the reference", "the samples"), at_least=k + 1), k)


def precision_recall_metrics(reference: np.ndarray, features: np.ndarray, resampling: Resampling) -> list[Metric]:
    """Return precision, recall, density and coverage with 5 neighbors.

    Args:
        reference: features of the real clips, (n, d).
        features: features of the clips to evaluate, (m, d).
        resampling: settings of the confidence intervals.
    """
    names = ("precision", "recall", "density", "coverage")
    if min(len(reference), len(features)) <= _NEIGHBORS:
        note = f"needs more than {_NEIGHBORS} clips in each set"
        return [Metric(name, name.capitalize(), None, better="higher", note=note) for name in names]
    metrics = []
    for name, part in zip(names, _per_item(reference, features, _NEIGHBORS), strict=True):
        units = [resampling.reference if name in ("recall", "coverage") else resampling.clips]
        high = np.inf if name == "density" else 1
        interval = resampling.interval(np.mean, part, units=units, low=0, high=high)
        metrics.append(Metric(name, name.capitalize(), float(part.mean()), interval, "higher"))
    return metrics


def _per_item(
    reference: np.ndarray, samples: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    reference_radii, sample_radii = _squared_radii(reference, k), _squared_radii(samples, k)
    neighborhoods = np.zeros(len(samples))  # number of reference neighborhoods that contain each sample
    recall, coverage = np.zeros(len(reference)), np.zeros(len(reference))
    for block in row_blocks(len(reference), len(samples)):
        squared = squared_distances(reference[block], samples)
        inside = squared < reference_radii[block, None] * _INSIDE
        neighborhoods += inside.sum(axis=0)
        coverage[block] = inside.any(axis=1)
        recall[block] = (squared < sample_radii * _INSIDE).any(axis=1)
    return (neighborhoods > 0).astype(np.float64), recall, neighborhoods / k, coverage


def _squared_radii(features: np.ndarray, k: int) -> np.ndarray:
    radii = np.empty(len(features))
    for block in row_blocks(len(features), len(features)):
        # Position 0 of the sorted distances is the clip itself.
        radii[block] = np.partition(squared_distances(features[block], features), k, axis=1)[:, k]
    return radii
