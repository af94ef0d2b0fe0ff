"""Histograms drawn with matplotlib, as SVG images that follow the light or dark color scheme of the browser."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.terminal import printable
from sashimi_evaluation.report.data import Method
from sashimi_evaluation.report.media import data_uri

# Matplotlib draws with the light colors; the style sheet inside the SVG replaces them in a dark color scheme.
_INK, _REFERENCE = "#26292e", "#8b8f96"
_SERIES = ("#2f5d8a", "#b4622d", "#3f7d5a", "#7a5195", "#a88a1f", "#b0476b")
_DARK = dict(
    zip(
        (_INK, _REFERENCE, *_SERIES),
        ("#e4e1da", "#80858d", "#86b4e0", "#e0a070", "#86c4a0", "#c0a0dc", "#d8c060", "#e493b0"),
        strict=True,
    )
)


@dataclass(frozen=True)
class Plot:
    """An image of a plot: its data URI, and its description for screen readers."""

    uri: str
    description: str


def class_histogram(methods: Sequence[Method], classes: Sequence[str]) -> Plot:
    """Return a bar chart of the share of each method's predictions in each class.

    Raises:
        UserError: matplotlib is not installed.
    """

    def draw(axes: Any) -> None:
        width = 0.8 / len(methods)
        for number, (method, color) in enumerate(zip(methods, _colors(methods), strict=True)):
            positions = np.arange(len(classes)) + (number - (len(methods) - 1) / 2) * width
            shares = 100 * method.class_shares(len(classes))
            axes.bar(positions, shares, 0.92 * width, color=color, label=_literal(method.name))
        axes.set_xticks(range(len(classes)), [_literal(name) for name in classes])
        axes.set_xlabel("predicted class")
        axes.set_ylabel("share of clips (%)")

    names = ", ".join(method.name for method in methods)
    description = f"Bar chart of the share of clips in each predicted class, for {names}; the table has the values"
    return Plot(_svg_uri(draw), description)


def likelihood_histogram(methods: Sequence[Method]) -> Plot:
    """Return a histogram of the log-likelihood per clip; every method must have log-likelihoods.

    Raises:
        UserError: matplotlib is not installed.
    """

    def draw(axes: Any) -> None:
        values = [method.finite_log_likelihoods() for method in methods]
        edges = np.histogram_bin_edges(np.concatenate(values), bins=40)
        for method, clips, color in zip(methods, values, _colors(methods), strict=True):
            shares = 100 * np.histogram(clips, edges)[0] / max(1, len(clips))
            axes.stairs(shares, edges, fill=True, color=color, alpha=0.25)
            axes.stairs(shares, edges, color=color, linewidth=1.6, label=_literal(method.name))
        axes.set_xlabel("log-likelihood of a clip (nats)")
        axes.set_ylabel("share of clips (%)")

    names = ", ".join(method.name for method in methods)
    description = f"Histogram of the log-likelihood per clip for {names}; the table has mean and range"
    return Plot(_svg_uri(draw), description)


def _colors(methods: Sequence[Method]) -> list[str]:
    series = iter(_SERIES * len(methods))
    return [_REFERENCE if method.is_reference else next(series) for method in methods]


def require_matplotlib() -> None:
    """Check that the plots can be drawn.

    Raises:
        UserError: matplotlib is not installed.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UserError("the plots of a report need matplotlib: pip install matplotlib") from error


def _svg_uri(draw: Callable[[Any], None]) -> str:
    require_matplotlib()
    import matplotlib
    from matplotlib.figure import Figure

    colors = {f"{name}color": _INK for name in ("text.", "xtick.", "ytick.", "axes.edge", "axes.label")}
    settings: dict[Any, Any] = {
        **colors,
        "svg.fonttype": "none",
        "svg.hashsalt": "report",  # equal reports become equal files
        "font.family": "sans-serif",
        "font.size": 10,
    }
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(8.4, 2.9), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        encoded = io.StringIO()
        figure.savefig(encoded, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return data_uri(_with_dark_colors(encoded.getvalue()).encode(), "image/svg+xml")


def _with_dark_colors(svg: str) -> str:
    for number, light in enumerate(_DARK):
        svg = svg.replace(light, f"var(--c{number})")
    light_values = ";".join(f"--c{number}:{light}" for number, light in enumerate(_DARK))
    dark_values = ";".join(f"--c{number}:{dark}" for number, dark in enumerate(_DARK.values()))
    style = f"<style>svg{{{light_values}}}@media(prefers-color-scheme:dark){{svg{{{dark_values}}}}}</style>"
    before, root, after = svg.partition("<defs>")
    return before + style + root + after


def _literal(name: str) -> str:
    """Escape text for matplotlib, where "$" starts a formula, a leading "_" hides a label, and SVG has no controls."""
    name = printable(name).replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name
