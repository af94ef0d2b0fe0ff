"""An evaluation as text for the terminal and as JSON for the record."""

import json
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sashimi_diffusion.data.speech_commands import DIGITS
from sashimi_diffusion.files import write_file
from sashimi_evaluation.evaluation import Evaluation, Scored
from sashimi_evaluation.feature_extraction import FEATURES, Measured
from sashimi_evaluation.metrics.figures import Figure


def record(evaluation: Evaluation, command: str) -> dict[str, Any]:
    """Everything a reader needs to judge the figures and to compute them again.

    Args:
        evaluation: what was scored.
        command: the command line that asked for it.
    """
    heard = evaluation.heard
    classifier, extractor, settings = heard.classifier, heard.extractor, heard.settings
    return {
        "command": command,
        "versions": versions(),
        "protocol": settings.protocol,
        "resamples": settings.resampling.resamples,
        "seed": settings.resampling.seed,
        "likelihood_window": settings.window,
        "classifier": {"name": classifier.name, "sha256": classifier.fingerprint, "accuracy": classifier.accuracy},
        "features": {
            "name": classifier.name if extractor is None else extractor.name,
            "fingerprint": classifier.fingerprint if extractor is None else extractor.fingerprint,
            "dimensions": heard.reference.outputs[FEATURES].shape[1],
        },
        "reference": _source(heard.reference),
        "held_out": None if heard.held_out is None else _source(heard.held_out),
        "sets": [_set(scored) for scored in evaluation.sets],
    }


def versions() -> dict[str, str]:
    """Versions of what computes the figures."""
    own = {name: version(name) for name in ("sashimi-diffusion", "numpy", "soundfile")}
    return {"python": platform.python_version(), "torch": torch.__version__, **own}


def write_record(path: Path, content: dict[str, Any]) -> None:
    """Write the JSON report, whole or not at all."""
    write_file(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def table(evaluation: Evaluation) -> str:
    """The figures of all sets side by side, their intervals below them, and the notes at the end."""
    sets = evaluation.sets
    rows = [["", *(scored.name for scored in sets)], ["clips", *(str(len(scored.measured)) for scored in sets)]]
    rows += [[_titled(first), *(_cell(_figure(scored, key)) for scored in sets)] for key, first in _keys(sets).items()]
    return "\n".join([*aligned(rows), *_remarks(evaluation)])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of a table, all of equally many cells, as lines with the columns below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _source(measured: Measured) -> dict[str, Any]:
    return {"path": str(measured.clips.root), "clips": len(measured)}


def _set(scored: Scored) -> dict[str, Any]:
    accuracy, histogram = scored.accuracy, scored.histogram.tolist()
    return {
        "name": scored.name,
        **_source(scored.measured),
        "recordings": scored.real,
        "figures": {figure.key: _figure_record(figure) for figure in scored.figures},
        "classes_heard": dict(zip(DIGITS, histogram, strict=True)),
        "accuracy_per_class": None if accuracy is None else dict(zip(DIGITS, _plain(accuracy.per_class), strict=True)),
        "confusion": None if accuracy is None else accuracy.confusion.tolist(),
        "notes": scored.notes,
    }


def _plain(values: np.ndarray) -> list[float | None]:
    """Numbers as JSON knows them: it has no NaN."""
    return [float(value) if np.isfinite(value) else None for value in values]


def _figure_record(figure: Figure) -> dict[str, Any]:
    interval = None if figure.interval is None else [figure.interval.low, figure.interval.high]
    return {"title": figure.title, "value": figure.value, "interval": interval, "note": figure.note}


def _keys(sets: list[Scored]) -> dict[str, Figure]:
    """The first figure of each key, in the order of the sets."""
    found: dict[str, Figure] = {}
    for scored in sets:
        for figure in scored.figures:
            found.setdefault(figure.key, figure)
    return found


def _titled(figure: Figure) -> str:
    arrow = {"lower": " ↓", "higher": " ↑"}.get(figure.better, "")
    return figure.title + arrow


def _figure(scored: Scored, key: str) -> Figure | None:
    return next((figure for figure in scored.figures if figure.key == key), None)


def _cell(figure: Figure | None) -> str:
    if figure is None or figure.value is None:
        return "-"
    if figure.interval is None:
        return f"{figure.value:.4g}"
    return f"{figure.value:.4g} [{figure.interval.low:.4g}, {figure.interval.high:.4g}]"


def _remarks(evaluation: Evaluation) -> list[str]:
    """The notes of the sets and of their figures; what is said of several is said once."""
    names = [scored.name for scored in evaluation.sets]
    lines = [f"{scored.name}: {note}" for scored in evaluation.sets for note in scored.notes]
    titles: dict[tuple[str, str], list[str]] = {}  # by set and note
    for scored in evaluation.sets:
        for figure in scored.figures:
            if figure.note:
                titles.setdefault((scored.name, figure.note), []).append(figure.title)
    said: dict[str, list[str]] = {}  # sets by what is said of their figures
    for (name, note), about in titles.items():
        said.setdefault(f"{', '.join(about)}: {note}", []).append(name)
    lines += [text if who == names else f"{', '.join(who)}: {text}" for text, who in said.items()]
    return ["", *lines] if lines else []
