"""Confidence intervals: bootstrap intervals of metrics and Wilson intervals of proportions."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike

from sashimi_diffusion.errors import UserError


@dataclass(frozen=True)
class Interval:
    """A confidence interval, in the unit of its metric.

    Args:
        low: lower end.
        high: upper end.
        deviations: resampled values minus their mean, float64 (resamples,), of a bootstrap interval; None for others.
    """

    low: float
    high: float
    deviations: np.ndarray | None = field(default=None, compare=False, repr=False)

    def clipped(self, low: float, high: float) -> "Interval":
        """Return the interval with its ends clipped to the range of the metric."""
        return replace(self, low=min(max(low, self.low), high), high=max(min(high, self.high), low))

    def shifted(self, by: float) -> "Interval":
        """Return the interval with ``by`` added to its ends."""
        return replace(self, low=self.low + by, high=self.high + by)


Units = np.ndarray | None
"""For each row of an array, the number of the recording that it belongs to; None: each is a recording of its own."""


@dataclass(frozen=True)
class Resampling:
    """Settings of the bootstrap, and which rows belong to one recording.

    Args:
        resamples: number of resamples.
        seed: seed of the resamples.
        clips: recording of each row of the clips to evaluate, int64 (n,); None: each row is a recording of its own.
        reference: the same for the reference.
        held_out: the same for the held-out recordings.
    """

    resamples: int = 200
    seed: int = 0
    clips: Units = field(default=None, compare=False, repr=False)
    reference: Units = field(default=None, compare=False, repr=False)
    held_out: Units = field(default=None, compare=False, repr=False)

    @property
    def both(self) -> tuple[Units, Units]:
        """The recordings of the rows of the reference and of the clips."""
        return self.reference, self.clips

    def where(self, clips: np.ndarray, reference: np.ndarray | None = None) -> "Resampling":
        """Return the settings for only the rows at which ``clips`` and ``reference``, bool (n,), are true."""
        of_reference = self.reference
        if of_reference is not None and reference is not None:
            of_reference = of_reference[reference]
        return replace(self, clips=None if self.clips is None else self.clips[clips], reference=of_reference)

    def interval(
        self,
        statistic: Callable[..., float],
        *arrays: np.ndarray,
        units: Sequence[Units] | None = None,
        low: float = -np.inf,
        high: float = np.inf,
    ) -> Interval:
        """Return the interval of :func:`bootstrap`, clipped to ``low`` and ``high``.

        ``units`` are the recordings of the rows of each array; by default those of the clips for one array, and those
        of the reference and of the clips for two.
        """
        if units is None:
            units = (self.clips,) if len(arrays) == 1 else self.both
        return bootstrap(statistic, *arrays, resamples=self.resamples, seed=self.seed, units=units).clipped(low, high)

    def proportion(self, share: float, count: int) -> Interval:
        """Return Wilson's interval of a share of ``count`` clips.

        If several rows belong to one recording, it is that of as many trials as there are recordings: the interval is
        wide enough even if all rows of a recording agree.
        """
        if self.clips is None:
            return wilson_interval(round(share * count), count)
        recordings = len(np.unique(self.clips))
        return wilson_interval(share * recordings, recordings)


def bootstrap(
    statistic: Callable[..., float],
    *arrays: ArrayLike,
    resamples: int = 200,
    seed: int = 0,
    level: float = 0.95,
    units: Sequence[Units] = (),
) -> Interval:
    """Return a bootstrap confidence interval of a statistic (Efron 1979).

    Each array is resampled independently: its rows are drawn with replacement, as many as it has. Repeated clips bias
    metrics such as the Fréchet distance upwards, so the quantiles of the resampled values may not even contain the
    value itself. The interval is therefore the value plus the quantiles of (resampled values - mean of the resampled
    values). It describes how the metric varies at this number of clips, not its limit for infinitely many clips. It is
    not clipped to the range of the metric. The intervals of ``scipy.stats.bootstrap`` (percentile, basic, BCa) are not
    centered on the mean of the resampled values, so they do not correct this bias.

    Rows that belong together (the probabilities and the label of a clip) must be in one array, or be resampled by
    index: ``bootstrap(lambda rows: metric(probs[rows], labels[rows]), np.arange(len(probs)))``.

    Args:
        statistic: function of ``arrays`` that returns a float.
        arrays: arrays with the clips along the first axis, not empty.
        resamples: number of resampled values, at least 2.
        seed: the same seed gives the same interval.
        level: confidence level, between 0 and 1.
        units: for each array, the recording of each row, int64 (rows,), or None. Whole recordings are drawn with
            replacement, because excerpts of one recording are not independent; a resample may have another number of
            rows. Without it, rows are drawn.

    Raises:
        UserError: there are no arrays, an array is empty, or a number is out of its range.
    """
    rows = [np.asarray(array) for array in arrays]
    if not rows or any(array.ndim == 0 or len(array) == 0 for array in rows):
        raise UserError("a bootstrap needs arrays with at least one row each")
    check_resamples(resamples)
    check_level(level)
    random = np.random.default_rng(seed)
    draws = [row_sampler(len(array), own) for array, own in zip(rows, units or [None] * len(rows), strict=True)]
    values = [
        statistic(*(array[draw(random)] for array, draw in zip(rows, draws, strict=True))) for _ in range(resamples)
    ]
    return interval_about(float(statistic(*rows)), np.asarray(values, dtype=np.float64), level)


def row_sampler(rows: int, units: Units) -> Callable[[np.random.Generator], np.ndarray]:
    """Return a function that draws the indices of a resample of ``rows`` rows, or of their recordings."""
    if units is None:
        return lambda random: random.integers(rows, size=rows)
    order = np.argsort(units, kind="stable")
    recordings = np.split(order, np.flatnonzero(np.diff(units[order])) + 1)
    count = len(recordings)
    return lambda random: np.concatenate([recordings[number] for number in random.integers(count, size=count)])


def interval_about(value: float, resampled: np.ndarray, level: float = 0.95) -> Interval:
    """Return the interval of :func:`bootstrap` from resampled values: ``value`` plus their centered quantiles.

    Args:
        value: the metric of the clips themselves.
        resampled: the metric of resampled clips, shape (resamples,).
        level: confidence level, between 0 and 1.

    Raises:
        UserError: ``level`` is not between 0 and 1.
    """
    check_level(level)
    deviations = resampled - resampled.mean()
    low, high = np.quantile(deviations, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value + float(low), value + float(high), deviations)


def wilson_interval(successes: float, n: int, level: float = 0.95) -> Interval:
    """Return the score interval of a proportion (Wilson 1927), valid also for few clips and proportions of 0 or 1.

    ``scipy.stats.binomtest`` gives the same interval, but SciPy is an optional dependency.

    Args:
        successes: number of successes, from 0 to n.
        n: number of trials, at least 1.
        level: confidence level, between 0 and 1.

    Raises:
        UserError: a number out of its range.
    """
    if n < 1 or not 0 <= successes <= n:
        raise UserError(f"an interval needs 0 <= successes <= n and n >= 1, got {successes} of {n}")
    check_level(level)
    z = NormalDist().inv_cdf((1 + level) / 2)
    proportion = successes / n
    center = (proportion + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(proportion * (1 - proportion) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else center - half  # exactly 0, where rounding would leave 1e-17
    return Interval(low, 1.0 if successes == n else center + half)


def check_resamples(resamples: int) -> None:
    """Check the number of resamples.

    Raises:
        UserError: fewer than 2.
    """
    if resamples < 2:
        raise UserError(f"resamples must be at least 2, got {resamples}")


def check_level(level: float) -> None:
    """Check a confidence level.

    Raises:
        UserError: not between 0 and 1.
    """
    if not 0 < level < 1:
        raise UserError(f"level must lie between 0 and 1, such as 0.95, got {level:g}")
