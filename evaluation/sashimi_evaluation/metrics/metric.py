"""One number of an evaluation, with its confidence interval and its caveat."""

from dataclasses import dataclass
from typing import Literal

from sashimi_evaluation.metrics.intervals import Interval


@dataclass(frozen=True)
class Metric:
    """One metric of one set of clips.

    Args:
        key: its name in the JSON report.
        title: its name in tables.
        value: None if it cannot be computed; ``note`` then says why.
        interval: 95 % confidence interval, or None if there is none.
        better: whether lower or higher values are better; "" for a metric that only describes.
        note: what limits its interpretation, for example too few clips; may be empty.
    """

    key: str
    title: str
    value: float | None
    interval: Interval | None = None
    better: Literal["lower", "higher", ""] = ""
    note: str = ""
