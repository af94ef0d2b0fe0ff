"""Memorization: whether samples are closer to the training clips than held-out real clips are."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.metrics.distances import nearest_neighbors
from sashimi_evaluation.metrics.intervals import Resampling
from sashimi_evaluation.metrics.metric import Metric


@dataclass(frozen=True)
class Memorization:
    """Distances of samples to the training set, compared with those of held-out real clips.

    Attributes:
        share_below_first: fraction of the samples whose distance to the training set is below the 1st percentile of the
            held-out distances; about 0.01 without copying.
        share_below_fifth: the same for the 5th percentile; about 0.05 without copying.
        median_ratio: median distance of the samples to the training set, divided by that of the held-out clips; about
            1 for samples that resemble real clips, near 0 for copies, above 1 for samples unlike the training set.
    """

    share_below_first: float
    share_below_fifth: float
    median_ratio: float


def memorization(samples: ArrayLike, train: ArrayLike, held_out: ArrayLike) -> Memorization:
    """Compare the distances of samples and of held-out real clips to the training clips.

    The distance of a clip is the distance to its nearest training clip. Percentiles are interpolated linearly.

    Args:
        samples: features of the samples, shape (clips, width).
        train: features of the training clips, shape (clips, width).
        held_out: features of real clips that were not used in training, shape (clips, width); their number limits the
            resolution of the percentiles.

    Raises:
        UserError: the arrays are invalid, or at least half of the held-out clips are in the training set.
    """
    _, held_out_distances = nearest_neighbors(held_out, train)
    _, distances = nearest_neighbors(samples, train)
    return memorization_of_distances(distances, held_out_distances)


def memorization_of_distances(distances: np.ndarray, held_out_distances: np.ndarray) -> Memorization:
    """Return what :func:`memorization` returns, from the distances to the nearest training clip.

    Args:
        distances: distances of the samples, shape (n,).
        held_out_distances: distances of the held-out clips, shape (m,).

    Raises:
        UserError: at least half of the held-out clips are in the training set.
    """
    first, fifth, median = np.percentile(held_out_distances, [1, 5, 50])
    if median == 0:
        raise UserError(
            "at least half of the held-out clips are also training clips: give real clips that were not trained on"
        )
    below_first, below_fifth = (float((distances < limit).mean()) for limit in (first, fifth))
    return Memorization(below_first, below_fifth, float(np.median(distances) / median))


def memorization_metrics(
    distances: np.ndarray, held_out_distances: np.ndarray | None, resampling: Resampling
) -> list[Metric]:
    """Return the fraction of copies and the ratio of the median distances.

    Args:
        distances: distances of the clips to their nearest reference clips, shape (n,).
        held_out_distances: the same for held-out recordings, shape (m,). None: the result is empty.
        resampling: settings of the confidence intervals.

    Raises:
        UserError: at least half of the held-out clips are in the reference.
    """
    if held_out_distances is None:
        return []
    result, count = memorization_of_distances(distances, held_out_distances), len(distances)
    units = resampling.clips, resampling.held_out

    def median_ratio(distances: np.ndarray, held_out_distances: np.ndarray) -> float:
        return float(np.median(distances) / np.median(held_out_distances))

    return [
        Metric(
            "copies",
            "Copies",
            result.share_below_first,
            resampling.proportion(result.share_below_first, count),
            "lower",
            "fraction of clips closer to the reference than 99 % of held-out clips; about 0.01 without memorization",
        ),
        Metric(
            "neighbour_ratio",
            "Neighbor distance ratio",
            result.median_ratio,
            resampling.interval(median_ratio, distances, held_out_distances, units=units, low=0),
            note="median distance to the nearest reference clip, divided by that of held-out clips; near 0 for copies",
        ),
    ]
