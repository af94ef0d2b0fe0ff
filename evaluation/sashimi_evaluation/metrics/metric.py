"""One value of an evaluation with its confidence interval and its note."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

from sashimi_evaluation.metrics.intervals import Interval, Resampling

Better = Literal["lower", "higher", ""]
FEW_CLIPS = 1000
"""Metrics that estimate a distribution get a note below this number of clips; the papers use 2,048 and more."""


@dataclass(frozen=True)
class Difference:
    """A metric of a set minus that of the held-out recordings, with the 95 % confidence interval of the difference."""

    value: float
    interval: Interval


@dataclass(frozen=True)
class Metric:
    """One metric of one set of clips.

    Args:
        key: name in the JSON report.
        title: name in tables.
        value: the value, or None if it cannot be computed; ``note`` then says why.
        interval: 95 % confidence interval, or None if there is none.
        better: whether lower or higher values are better; "" if neither is.
        note: remark for the interpretation of the value, for example that there are too few clips; may be empty.
        difference: the difference from the held-out recordings, or None if there are none.
    """

    key: str
    title: str
    value: float | None
    interval: Interval | None = None
    better: Better = ""
    note: str = ""
    difference: Difference | None = None


def mean_metric(key: str, title: str, values: np.ndarray, resampling: Resampling) -> Metric:
    """Return the mean of ``values``, one number per clip, shape (clips,), with its bootstrap interval."""
    return Metric(key, title, float(np.mean(values)), resampling.interval(np.mean, values))
