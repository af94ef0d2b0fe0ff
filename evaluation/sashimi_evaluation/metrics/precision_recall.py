"""Fidelity, variety and copying, told from the nearest neighbours of clips in feature space."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.metrics.arrays import feature_pair
from sashimi_evaluation.metrics.distances import nearest_neighbours, row_blocks, squared_distances

# A clip on the edge of a ball lies outside, whatever the rounding of its distance.
_INSIDE = 1 - 1e-9


@dataclass(frozen=True)
class Manifold:
    """How samples and a reference cover each other; precision, recall and coverage are shares from 0 to 1.

    Attributes:
        precision: of the samples that lie in the ball of a reference clip.
        recall: of the reference clips that lie in the ball of a sample.
        density: balls of reference clips that hold a sample, on average, divided by k; may be above 1.
        coverage: of the reference clips whose ball holds a sample.
    """

    precision: float
    recall: float
    density: float
    coverage: float


@dataclass(frozen=True)
class Memorization:
    """How much nearer samples are to training clips than held-out real clips are.

    Attributes:
        share_below_first: share of the samples nearer to their nearest training clip than the 1st percentile of
            the held-out clips is to its own; about 0.01 without copying.
        share_below_fifth: the same for the 5th percentile; about 0.05 without copying.
        median_ratio: median distance of the samples to the training set, divided by that of the held-out clips; about
            1 for clips like the real ones, near 0 for copies, above 1 for samples unlike the training set.
    """

    share_below_first: float
    share_below_fifth: float
    median_ratio: float


def precision_recall_density_coverage(reference: ArrayLike, samples: ArrayLike, k: int = 5) -> Manifold:
    """Improved precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991, eq. 1 and 2), density and coverage
    (Naeem et al. 2020, arXiv 2002.09797).

    The ball of a clip reaches to its k-th nearest neighbour in its own set, not counting itself, without its edge.
    With this, a set without duplicates has precision, recall, density and coverage 1 against itself.

    Args:
        reference: shape (clips, width), more than k clips.
        samples: shape (clips, width), more than k clips.
        k: at least 1.

    Raises:
        UserError: the arrays cannot be used, or k is out of range.
    """
    parts = precision_recall_density_coverage_per_item(reference, samples, k)
    return Manifold(*(float(part.mean()) for part in parts))


def precision_recall_density_coverage_per_item(
    reference: ArrayLike, samples: ArrayLike, k: int = 5
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """What each clip adds: the figures of ``precision_recall_density_coverage`` are the means of these arrays.

    An interval for a figure comes from resampling its array; the balls are then taken as given.

    Returns:
        Precision (samples,), recall (references,), density (samples,) and coverage (references,), float64.

    Raises:
        UserError: as ``precision_recall_density_coverage``.
    """
    if k < 1:
        raise UserError(f"k must be at least 1, got {k}")
    reference, samples = feature_pair(reference, samples, ("the reference", "the samples"), at_least=k + 1)
    reference_radii, sample_radii = _squared_radii(reference, k), _squared_radii(samples, k)
    balls_around_sample = np.zeros(len(samples))
    recall, coverage = np.zeros(len(reference)), np.zeros(len(reference))
    for block in row_blocks(len(reference), len(samples)):
        squared = squared_distances(reference[block], samples)
        in_reference_ball = squared < reference_radii[block, None] * _INSIDE
        balls_around_sample += in_reference_ball.sum(axis=0)
        coverage[block] = in_reference_ball.any(axis=1)
        recall[block] = (squared < sample_radii * _INSIDE).any(axis=1)
    return (balls_around_sample > 0).astype(np.float64), recall, balls_around_sample / k, coverage


def memorization(samples: ArrayLike, train: ArrayLike, held_out: ArrayLike) -> Memorization:
    """Whether samples lie nearer to the training clips than real clips do that the model has not seen.

    The distance of a clip is that to its nearest training clip; percentiles are interpolated linearly.

    Args:
        samples: shape (clips, width).
        train: features of the training clips, shape (clips, width).
        held_out: features of real clips that were not trained on, shape (clips, width); their number limits how
            finely the percentiles are known.

    Raises:
        UserError: the arrays cannot be used, or half of the held-out clips are in the training set.
    """
    _, usual = nearest_neighbours(held_out, train)
    _, distances = nearest_neighbours(samples, train)
    return memorization_of_distances(distances, usual)


def memorization_of_distances(distances: np.ndarray, usual: np.ndarray) -> Memorization:
    """The same of distances to the nearest training clip: of the samples (n,), and of the held-out clips (m,).

    Raises:
        UserError: half of the held-out clips are in the training set.
    """
    first, fifth, median = np.percentile(usual, [1, 5, 50])
    if median == 0:
        raise UserError("at least half of the held-out clips are training clips: give real clips not trained on")
    below_1, below_5 = (float((distances < limit).mean()) for limit in (first, fifth))
    return Memorization(below_1, below_5, float(np.median(distances) / median))


def _squared_radii(features: np.ndarray, k: int) -> np.ndarray:
    radii = np.empty(len(features))
    for block in row_blocks(len(features), len(features)):
        # The nearest in the own set, at position 0, is the clip itself.
        radii[block] = np.partition(squared_distances(features[block], features), k, axis=1)[:, k]
    return radii
