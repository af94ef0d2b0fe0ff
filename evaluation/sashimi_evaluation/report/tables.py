"""The tables of a report: figures, published figures, classes, confusions and likelihoods."""

import math
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from sashimi_evaluation.report.data import Method, Metric
from sashimi_evaluation.report.html import Markup, element, join
from sashimi_evaluation.report.plots import class_shares, finite
from sashimi_evaluation.report.published import Anchor, AnchorGroup

_DASH = "\N{EN DASH}"

_ANCHOR_COLUMNS: tuple[tuple[str, Callable[[Anchor], float | None], str], ...] = (
    ("NLL", lambda anchor: anchor.nll, "lower"),
    ("FID", lambda anchor: anchor.fid, "lower"),
    ("FID by class", lambda anchor: anchor.fid_class, "lower"),
    ("IS", lambda anchor: anchor.inception, "higher"),
    ("mIS", lambda anchor: anchor.mis, "higher"),
    ("AM", lambda anchor: anchor.am, "lower"),
    ("Accuracy", lambda anchor: anchor.accuracy, "higher"),
)


def metric_table(methods: Sequence[Method]) -> Markup:
    """One row for each metric, one column for each method that has metrics; notes stand below the table."""
    scored = [method for method in methods if method.metrics]
    names = list(dict.fromkeys(metric.name for method in scored for metric in method.metrics))
    notes: list[str] = []
    rows = []
    for name in names:
        metrics = [next((metric for metric in method.metrics if metric.name == name), None) for method in scored]
        best = _best(scored, metrics)
        better = next((metric.better for metric in metrics if metric is not None), None)
        cells = [_metric_cell(metric, metric is not None and metric.value == best, notes) for metric in metrics]
        rows.append(element("tr", element("th", name, _direction(better), scope="row"), *cells))
    heads = [element("th", method.name, scope="col", class_="number") for method in scored]
    listed = [element("li", note, id=f"note-{number}") for number, note in enumerate(notes, 1)]
    caption = (
        "Figures of each folder with their 95 % intervals. Bold: the best of a row among the samples; where intervals "
        "overlap, the order may be chance."
    )
    table = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", element("th", "Metric", scope="col"), *heads)),
        element("tbody", *rows),
    )
    return join(_scrolling(table, "Metrics"), element("ol", *listed, class_="notes") if listed else "")


def anchor_table(group: AnchorGroup) -> Markup:
    """The published figures of one group; columns that the group has nothing for are left out."""
    columns = [column for column in _ANCHOR_COLUMNS if any(column[1](anchor) is not None for anchor in group.anchors)]
    counted = any(anchor.parameters for anchor in group.anchors)
    decimals = [_usual_decimals([read(anchor) for anchor in group.anchors]) for _, read, _ in columns]
    heads = [element("th", name, _direction(better), scope="col", class_="number") for name, _, better in columns]
    if counted:
        heads.insert(0, element("th", "Parameters", scope="col", class_="number"))
    rows = []
    for anchor in group.anchors:
        cells = [_published(read(anchor), usual) for (_, read, _), usual in zip(columns, decimals, strict=True)]
        if counted:
            cells.insert(0, f"{anchor.parameters / 1e6:.1f} M" if anchor.parameters else _DASH)
        numbers = [element("td", cell, class_="number") for cell in cells]
        rows.append(element("tr", element("th", anchor.model, scope="row"), *numbers))
    caption = element("caption", element("b", group.name), f". Classifier: {group.classifier}. Source: {group.source}.")
    head = element("thead", element("tr", element("th", "Model", scope="col"), *heads))
    return _scrolling(element("table", caption, head, element("tbody", *rows)), group.name)


def confusion_table(method: Method, classes: Sequence[str]) -> Markup:
    """Label against prediction, each row shaded by its shares; the method must have labels."""
    counts = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(counts, (np.asarray(method.labels), np.asarray(method.predictions)), 1)
    rows = []
    for name, row in zip(classes, counts, strict=True):
        shares = row / max(1, row.sum())
        cells = [
            element("td", str(count) if count else "·", class_="number", style=f"--share:{share:.3f}")
            for count, share in zip(row, shares, strict=True)
        ]
        rows.append(element("tr", element("th", name, scope="row"), *cells))
    right, total = int(np.trace(counts)), int(counts.sum())
    summary = f". {right} of {total} clips are classified as labelled ({100 * right / max(1, total):.1f} %)."
    caption = element("caption", element("b", method.name), summary + " Rows: label; columns: prediction.")
    heads = [element("th", name, scope="col", class_="number") for name in classes]
    head = element("thead", element("tr", element("th", "Label", scope="col"), *heads))
    table = element("table", caption, head, element("tbody", *rows), class_="confusion")
    return _scrolling(table, f"Confusions of {method.name}")


def class_table(methods: Sequence[Method], classes: Sequence[str]) -> Markup:
    """The values behind the class histogram."""
    shares = [class_shares(method, len(classes)) for method in methods]
    rows = [
        element(
            "tr",
            element("th", name, scope="row"),
            *(element("td", f"{100 * share[index]:.1f}", class_="number") for share in shares),
        )
        for index, name in enumerate(classes)
    ]
    heads = [element("th", method.name, scope="col", class_="number") for method in methods]
    head = element("thead", element("tr", element("th", "Class", scope="col"), *heads))
    caption = element("caption", "Share of clips in each predicted class, in per cent.")
    return _scrolling(element("table", caption, head, element("tbody", *rows)), "Class shares")


def likelihood_table(methods: Sequence[Method]) -> Markup:
    """Mean and range of the log-likelihood per clip of each method."""
    rows = []
    for method in methods:
        values = finite(method.log_likelihoods)
        figures = (values.mean(), values.min(), values.max()) if len(values) else (math.nan,) * 3
        cells = [element("td", _figure(figure), class_="number") for figure in figures]
        rows.append(element("tr", element("th", method.name, scope="row"), *cells))
    heads = [element("th", name, scope="col", class_="number") for name in ("Mean", "Lowest", "Highest")]
    head = element("thead", element("tr", element("th", "Samples", scope="col"), *heads))
    caption = element("caption", "Log-likelihood of a clip, in nats.")
    return _scrolling(element("table", caption, head, element("tbody", *rows)), "Log-likelihoods")


def _metric_cell(metric: Metric | None, best: bool, notes: list[str]) -> Markup:
    if metric is None:
        return element("td", _DASH, class_="number")
    value = element("b" if best else "span", _figure(metric.value))
    parts = [value]
    if metric.note:
        if metric.note not in notes:
            notes.append(metric.note)
        number = str(notes.index(metric.note) + 1)
        parts.append(element("sup", element("a", number, href=f"#note-{number}", aria_label=f"note {number}")))
    if metric.low is not None and metric.high is not None:
        parts.append(element("span", f"{_figure(metric.low)} to {_figure(metric.high)}", class_="interval"))
    return element("td", *parts, class_="number")


def _best(methods: Sequence[Method], metrics: Sequence[Metric | None]) -> float | None:
    """The best value among the samples, if there are two or more to choose from."""
    candidates = [
        metric
        for method, metric in zip(methods, metrics, strict=True)
        if metric is not None and metric.better and not method.is_reference and math.isfinite(metric.value)
    ]
    if len(candidates) < 2:
        return None
    choose = min if candidates[0].better == "lower" else max
    return choose(metric.value for metric in candidates)


def _direction(better: str | None) -> Markup:
    if better is None:
        return Markup("")
    arrow = element("span", "↓" if better == "lower" else "↑", aria_hidden="true", class_="arrow")
    return join(arrow, element("span", f" ({better} is better)", class_="unseen"))


def _figure(value: float) -> str:
    if not math.isfinite(value):
        return _DASH
    digits = max(0, 3 - math.floor(math.log10(abs(value)))) if value else 3
    return f"{value:,.{min(digits, 6)}f}".replace("-", "\N{MINUS SIGN}")


def _published(value: float | None, usual_decimals: int) -> str:
    """As printed: floats have lost the zeros at the end that a table's columns show."""
    if value is None:
        return _DASH
    return f"{value:g}" if value >= 100 else f"{value:.{max(_decimals(value), usual_decimals)}f}"


def _usual_decimals(values: Sequence[float | None]) -> int:
    return Counter(_decimals(value) for value in values if value is not None).most_common(1)[0][0]


def _decimals(value: float) -> int:
    return len(f"{value:g}".partition(".")[2])


def _scrolling(table: Markup, name: str) -> Markup:
    """A wide table scrolls by itself, also with the keyboard, instead of widening the page."""
    return element("div", table, class_="scrolling", tabindex="0", role="region", aria_label=name)
