"""Histograms drawn with matplotlib, as pictures that follow the reader's light or dark colours."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.report.data import Method
from sashimi_evaluation.report.html import Markup, element
from sashimi_evaluation.report.media import data_uri

# Light colour: dark colour. Matplotlib draws with the light ones; the reader's browser swaps them.
_INK, _REFERENCE = "#26292e", "#8b8f96"
_SERIES = ("#2f5d8a", "#b4622d", "#3f7d5a", "#7a5195", "#a88a1f", "#b0476b")
_DARK = dict(
    zip(
        (_INK, _REFERENCE, *_SERIES),
        ("#e4e1da", "#80858d", "#86b4e0", "#e0a070", "#86c4a0", "#c0a0dc", "#d8c060", "#e493b0"),
        strict=True,
    )
)


def class_histogram(methods: Sequence[Method], classes: Sequence[str]) -> Markup:
    """How the predictions of each method spread over the classes, as an ``<img>``.

    Raises:
        UserError: matplotlib is not installed.
    """

    def draw(axes: Any) -> None:
        width = 0.8 / len(methods)
        for number, (method, colour) in enumerate(zip(methods, _colours(methods), strict=True)):
            places = np.arange(len(classes)) + (number - (len(methods) - 1) / 2) * width
            axes.bar(
                places, 100 * class_shares(method, len(classes)), 0.92 * width, color=colour, label=_plain(method.name)
            )
        axes.set_xticks(range(len(classes)), [_plain(name) for name in classes])
        axes.set_xlabel("predicted class")
        axes.set_ylabel("share of clips (%)")

    names = ", ".join(method.name for method in methods)
    return _picture(
        draw, f"Bar chart of the share of clips in each predicted class, for {names}; the table has the values"
    )


def likelihood_histogram(methods: Sequence[Method]) -> Markup:
    """Distributions of the log-likelihood per clip, as an ``<img>``; every method must have log-likelihoods.

    Raises:
        UserError: matplotlib is not installed.
    """

    def draw(axes: Any) -> None:
        values = [finite(method.log_likelihoods) for method in methods]
        edges = np.histogram_bin_edges(np.concatenate(values), bins=40)
        for method, clips, colour in zip(methods, values, _colours(methods), strict=True):
            shares = 100 * np.histogram(clips, edges)[0] / max(1, len(clips))
            axes.stairs(shares, edges, fill=True, color=colour, alpha=0.25)
            axes.stairs(shares, edges, color=colour, linewidth=1.6, label=_plain(method.name))
        axes.set_xlabel("log-likelihood of a clip (nats)")
        axes.set_ylabel("share of clips (%)")

    names = ", ".join(method.name for method in methods)
    return _picture(draw, f"Histogram of the log-likelihood per clip for {names}; the table has mean and range")


def class_shares(method: Method, classes: int) -> np.ndarray:
    """Share of a method's predictions in each class, shape (classes,); zeros where nothing was scored."""
    counts = np.bincount(np.asarray(method.predictions, dtype=np.int64), minlength=classes)
    return counts / max(1, counts.sum())


def finite(values: np.ndarray) -> np.ndarray:
    """Those of the values that are finite, as float64 of shape (n,)."""
    array = np.asarray(values, dtype=np.float64)
    return array[np.isfinite(array)]


def _colours(methods: Sequence[Method]) -> list[str]:
    series = iter(_SERIES * len(methods))
    return [_REFERENCE if method.is_reference else next(series) for method in methods]


def _picture(draw: Callable[[Any], None], alternative: str) -> Markup:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError('the plots of a report need matplotlib: pip install "sashimi-diffusion[eval]"') from error
    colours = {f"{name}.color": _INK for name in ("text", "xtick", "ytick")} | {"axes.labelcolor": _INK}
    fixed = {"svg.fonttype": "none", "svg.hashsalt": "report", "font.family": "sans-serif", "font.size": 10}
    with matplotlib.rc_context(colours | fixed | {"axes.edgecolor": _INK}):
        figure = Figure(figsize=(8.4, 2.9), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        encoded = io.StringIO()
        figure.savefig(encoded, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = _with_dark_colours(encoded.getvalue())
    return element("img", src=data_uri(svg.encode(), "image/svg+xml"), alt=alternative, class_="plot")


def _with_dark_colours(svg: str) -> str:
    for number, light in enumerate(_DARK):
        svg = svg.replace(light, f"var(--c{number})")
    light_values = ";".join(f"--c{number}:{light}" for number, light in enumerate(_DARK))
    dark_values = ";".join(f"--c{number}:{dark}" for number, dark in enumerate(_DARK.values()))
    style = f"<style>svg{{{light_values}}}@media(prefers-color-scheme:dark){{svg{{{dark_values}}}}}</style>"
    before, root, after = svg.partition("<defs>")
    return before + style + root + after


def _plain(name: str) -> str:
    """Text that matplotlib takes as it is: a dollar sign would start a formula, a leading underscore hides a label."""
    name = name.encode("utf-8", "replace").decode().replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name
