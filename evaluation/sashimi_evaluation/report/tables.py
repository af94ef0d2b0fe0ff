"""The tables of a report as rows of formatted cells: metrics, published results, classes, confusions, likelihoods."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from sashimi_evaluation.metrics.intervals import Interval
from sashimi_evaluation.metrics.metric import Metric
from sashimi_evaluation.report.data import Method
from sashimi_evaluation.report.published import ResultGroup

_DASH = "\N{EN DASH}"


@dataclass(frozen=True)
class Heading:
    """The heading of a row or a column; ``better`` says whether lower or higher values are better."""

    text: str
    better: Literal["lower", "higher", ""] = ""


@dataclass(frozen=True)
class Cell:
    """A formatted value.

    Attributes:
        text: the value.
        best: whether it is the best value of the row.
        note: number of the note below the table, from 1, or None.
        interval: the confidence interval; may be empty.
        difference: the difference from the held-out recordings with its confidence interval; may be empty.
        share: fraction from 0 to 1 that sets the intensity of the background color, or None.
    """

    text: str
    best: bool = False
    note: int | None = None
    interval: str = ""
    difference: str = ""
    share: float | None = None


@dataclass(frozen=True)
class Row:
    """A heading and one cell for each column."""

    heading: Heading
    cells: Sequence[Cell]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: name for screen readers.
        caption: text above the table.
        corner: heading of the column of row headings.
        columns: headings of the other columns.
        rows: the rows.
        title: emphasized beginning of the caption; may be empty.
        notes: numbered notes below the table.
        shaded: whether cells have background colors.
    """

    name: str
    caption: str
    corner: str
    columns: Sequence[Heading]
    rows: Sequence[Row]
    title: str = ""
    notes: Sequence[str] = ()
    shaded: bool = False


def metric_table(methods: Sequence[Method]) -> Table:
    """Return a table with one row for each metric and one column for each method that has metrics."""
    evaluated = [method for method in methods if method.metrics]
    by_method = [{metric.key: metric for metric in method.metrics} for method in evaluated]
    of_samples = [metrics for metrics, method in zip(by_method, evaluated, strict=True) if not method.is_reference]
    first_of_key: dict[str, Metric] = {}
    notes: dict[str, int] = {}  # number of each note by its text
    for method in evaluated:
        for metric in method.metrics:
            first_of_key.setdefault(metric.key, metric)
    rows = []
    for key, first in first_of_key.items():
        best = _best_value([metrics[key] for metrics in of_samples if key in metrics])
        cells = [_metric_cell(metrics.get(key), best, notes) for metrics in by_method]
        rows.append(Row(Heading(first.title, first.better), cells))
    caption = (
        "Metrics of each folder with 95 % confidence intervals. Bold: the best value of a row among the samples; "
        "where intervals overlap, the order may be due to chance."
    )
    if any(metric.difference is not None for metrics in by_method for metric in metrics.values()):
        caption += " Δ: the difference from the held-out recordings with the interval of the difference."
    return Table("Metrics", caption, "Metric", _names(evaluated), rows, notes=list(notes))


def _metric_cell(metric: Metric | None, best: float | None, notes: dict[str, int]) -> Cell:
    if metric is None:
        return Cell(_DASH)
    note = notes.setdefault(metric.note, len(notes) + 1) if metric.note else None
    difference = metric.difference
    apart = "" if difference is None else f"Δ {_number(difference.value)}, {_ends(difference.interval)}"
    best_one = metric.value is not None and metric.value == best
    return Cell(_number(metric.value), best_one, note, _ends(metric.interval), apart)


def _ends(interval: Interval | None) -> str:
    return "" if interval is None else f"{_number(interval.low)} to {_number(interval.high)}"


def _best_value(metrics: Sequence[Metric]) -> float | None:
    """Return the best value, or None if there are fewer than two values or no better direction."""
    values = [metric.value for metric in metrics if metric.better and metric.value is not None]
    values = [value for value in values if math.isfinite(value)]
    if len(values) < 2:
        return None
    return min(values) if metrics[0].better == "lower" else max(values)


_PUBLISHED_COLUMNS = {  # headings by attribute of PublishedResult
    "nll": Heading("NLL", "lower"),
    "fid": Heading("FID", "lower"),
    "fid_by_class": Heading("FID by class", "lower"),
    "inception_score": Heading("IS", "higher"),
    "mis": Heading("mIS", "higher"),
    "am": Heading("AM", "lower"),
    "accuracy": Heading("Accuracy", "higher"),
}


def published_table(group: ResultGroup) -> Table:
    """Return the published results of one group, without the columns for which the group has no values."""
    columns: list[Heading] = []
    texts: list[list[str]] = []  # by column
    if any(result.parameters for result in group.results):
        columns.append(Heading("Parameters"))
        texts.append([f"{count / 1e6:.1f} M" if (count := result.parameters) else _DASH for result in group.results])
    for attribute, heading in _PUBLISHED_COLUMNS.items():
        values = [getattr(result, attribute) for result in group.results]
        if any(value is not None for value in values):
            columns.append(heading)
            texts.append(_as_printed(values))
    rows = [
        Row(Heading(result.model), [Cell(column[number]) for column in texts])
        for number, result in enumerate(group.results)
    ]
    caption = f"Classifier: {group.classifier}. Source: {group.source}."
    return Table(group.name, caption, "Model", columns, rows, title=group.name)


def _as_printed(values: Sequence[float | None]) -> list[str]:
    """Format values with the most common number of decimals. This restores zeros that floats lose: 4.9 becomes 4.90."""
    decimals = [len(f"{value:g}".partition(".")[2]) for value in values if value is not None]
    common = Counter(decimals).most_common(1)[0][0]

    def text(value: float | None) -> str:
        if value is None:
            return _DASH
        needed = len(f"{value:g}".partition(".")[2])
        return f"{value:g}" if value >= 100 else f"{value:.{max(needed, common)}f}"

    return [text(value) for value in values]


def confusion_table(method: Method, classes: Sequence[str]) -> Table:
    """Return the confusion matrix: the number of clips by label and prediction. The method must have labels."""
    assert method.labels is not None
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)  # (labels, predictions)
    np.add.at(counts, (method.labels, method.predictions), 1)
    rows = []
    for name, row in zip(classes, counts, strict=True):
        total = max(1, int(row.sum()))
        rows.append(Row(Heading(name), [Cell(str(count) if count else "·", share=count / total) for count in row]))
    correct, total = int(np.trace(counts)), int(counts.sum())
    caption = (
        f"{correct} of {total} clips are classified as labeled ({100 * correct / max(1, total):.1f} %). "
        "Rows: label; columns: prediction."
    )
    columns = [Heading(name) for name in classes]
    name = f"Confusions of {method.name}"
    return Table(name, caption, "Label", columns, rows, title=method.name, shaded=True)


def class_table(methods: Sequence[Method], classes: Sequence[str]) -> Table:
    """Return the values of the class histogram: the share of each method's predictions in each class."""
    shares = [100 * method.class_shares(len(classes)) for method in methods]
    rows = [Row(Heading(name), [Cell(f"{share[index]:.1f}") for share in shares]) for index, name in enumerate(classes)]
    caption = "Share of clips in each predicted class, in percent."
    return Table("Class shares", caption, "Class", _names(methods), rows)


def likelihood_table(methods: Sequence[Method]) -> Table:
    """Return mean and range of the log-likelihood per clip of each method."""
    rows = []
    for method in methods:
        values = method.finite_log_likelihoods()
        statistics = [values.mean(), values.min(), values.max()] if len(values) else [None] * 3
        rows.append(Row(Heading(method.name), [Cell(_number(value)) for value in statistics]))
    columns = [Heading("Mean"), Heading("Lowest"), Heading("Highest")]
    return Table("Log-likelihoods", "Log-likelihood of a clip, in nats.", "Samples", columns, rows)


def _names(methods: Sequence[Method]) -> list[Heading]:
    return [Heading(method.name) for method in methods]


def _number(value: float | None) -> str:
    """Format a value with four significant digits, but no more than six decimals."""
    if value is None or not math.isfinite(value):
        return _DASH
    decimals = max(0, 3 - math.floor(math.log10(abs(value)))) if value else 3
    return f"{value:,.{min(decimals, 6)}f}".replace("-", "\N{MINUS SIGN}")
