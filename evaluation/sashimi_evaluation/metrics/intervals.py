"""How far a figure would scatter if the clips were drawn again: bootstrap intervals."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sashimi_diffusion.errors import UserError


@dataclass(frozen=True)
class Interval:
    """A confidence interval, in the unit of its figure."""

    low: float
    high: float


def bootstrap(
    statistic: Callable[..., float],
    *arrays: ArrayLike,
    resamples: int = 200,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The interval in which a figure of this many clips would lie if other clips of the same kind were drawn.

    Each array is resampled on its own: as many rows as it has, drawn with replacement (Efron 1979). Clips that occur
    several times bias figures such as the Fréchet distance upwards, so the raw quantiles would often not even
    contain the figure. Therefore the interval is the figure plus the quantiles of the resampled values about *their*
    mean: it says how the figure at this number of clips scatters, not where the figure of infinitely many lies. It
    is not cut at the ends of a figure's range.

    Rows that belong together (a clip's probabilities and its label) go into one array, or are resampled by index:
    ``bootstrap(lambda rows: figure(probs[rows], labels[rows]), np.arange(len(probs)))``.

    Args:
        statistic: takes as many arrays as are given and returns a float.
        arrays: clips along the first axis, not empty.
        resamples: how many values the quantiles are taken of, at least 2.
        seed: the same seed gives the same interval.
        level: share of such values that the interval holds, between 0 and 1.

    Raises:
        UserError: no arrays, an empty one, or a number out of its range.
    """
    rows = [np.asarray(array) for array in arrays]
    if not rows or any(array.ndim == 0 or len(array) == 0 for array in rows):
        raise UserError("a bootstrap needs arrays with at least one row each")
    check_resamples(resamples)
    check_level(level)
    random = np.random.default_rng(seed)
    draws = [
        statistic(*(array[random.integers(len(array), size=len(array))] for array in rows)) for _ in range(resamples)
    ]
    return interval_about(float(statistic(*rows)), np.asarray(draws, dtype=np.float64), level)


def interval_about(figure: float, draws: np.ndarray, level: float = 0.95) -> Interval:
    """``figure`` plus the quantiles of resampled values about their mean, see ``bootstrap``.

    Args:
        figure: of the clips themselves.
        draws: the figure of resampled clips, shape (resamples,).
        level: share of the draws that the interval holds.

    Raises:
        UserError: ``level`` is not between 0 and 1.
    """
    check_level(level)
    low, high = np.quantile(draws - draws.mean(), [(1 - level) / 2, (1 + level) / 2])
    return Interval(figure + float(low), figure + float(high))


def check_resamples(resamples: int) -> None:
    """Refuses a number of resamples that has no quantiles.

    Raises:
        UserError: fewer than 2.
    """
    if resamples < 2:
        raise UserError(f"resamples must be at least 2, got {resamples}")


def check_level(level: float) -> None:
    """Refuses what is no level of confidence.

    Raises:
        UserError: not between 0 and 1.
    """
    if not 0 < level < 1:
        raise UserError(f"level must lie between 0 and 1, such as 0.95, got {level:g}")
