"""Text table and JSON report of an evaluation."""

import json
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from sashimi_diffusion.output_files import write_output_file
from sashimi_diffusion.strict_json import strict
from sashimi_diffusion.terminal import printable
from sashimi_evaluation.classifiers import WordClassifier
from sashimi_evaluation.evaluation import EvaluatedSet, Evaluation
from sashimi_evaluation.extraction import Extraction
from sashimi_evaluation.feature_extraction import FEATURES, ClipFeatures
from sashimi_evaluation.metrics.metric import Metric
from sashimi_evaluation.report.clip_records import clip_records, spectrum_record

WORDS = {"↓": "(lower is better)", "↑": "(higher is better)", "∞": "infinity", "±": "+/-"}
"""The symbols of the table that some terminals lack, and words that replace them."""


def json_report(evaluation: Evaluation, command: str) -> dict[str, Any]:
    """Return the content of the JSON report: all metrics, and the settings and versions that reproduce them.

    JSON has no NaN and no infinity; they become None.

    Args:
        evaluation: the evaluated sets.
        command: the command line of the evaluation.
    """
    extraction = evaluation.extraction
    network, settings = extraction.feature_network, extraction.settings
    held_out, windows = extraction.held_out, settings.windows
    content = {
        "command": command,
        "versions": versions(),
        "protocol": settings.protocol,
        "resamples": settings.resampling.resamples,
        "seed": settings.resampling.seed,
        "likelihood_window": settings.window,
        "excerpts": None if windows is None else {"window": windows.seconds, "hop": windows.step},
        "notes": list(extraction.notes),
        "classifier": None if extraction.classifier is None else _classifier(extraction.classifier),
        "features": {
            "name": network.name,
            "fingerprint": network.fingerprint,
            "dimensions": extraction.reference.outputs[FEATURES].shape[1],
        },
        "reference": _source(extraction.reference),
        "held_out": None if held_out is None else _held_out(held_out),
        "sets": [_set_record(evaluated, extraction) for evaluated in evaluation.sets],
    }
    return strict(content)


def versions() -> dict[str, str]:
    """Return the versions of the packages that compute the metrics."""
    packages = {name: version(name) for name in ("sashimi-diffusion", "numpy", "soundfile")}
    return {"python": platform.python_version(), "torch": torch.__version__, **packages}


def write_json_report(path: Path, content: dict[str, Any]) -> None:
    """Write the JSON report. An existing file is replaced only by a complete new one.

    Raises:
        UserError: the file cannot be written.
    """
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    # Undecodable bytes of file names, which Python keeps as surrogates, become escapes of JSON.
    write_output_file(path, text.encode("utf-8", "backslashreplace"))


def text_table(evaluation: Evaluation, symbols: bool = True) -> str:
    """Return a table with a column for each set, and one for its differences from held-out recordings, and the notes.

    Args:
        evaluation: the evaluated sets.
        symbols: whether the text may contain the symbols in ``WORDS``.
    """
    sets = evaluation.sets
    columns = [(each, apart) for each in sets for apart in ([False, True] if _has_differences(each) else [False])]
    names = ["minus held-out" if apart else printable(each.name) for each, apart in columns]
    counts = ["" if apart else str(len(each.clip_features)) for each, apart in columns]
    rows = [["", *names], ["clips", *counts]]
    if evaluation.extraction.settings.windows is not None:
        files = ["" if apart else str(each.clip_features.files) for each, apart in columns]
        rows[1:] = [["recordings", *files], ["excerpts", *counts]]
    for key, first in _first_metrics(sets).items():
        metrics = [(_find(each, key), apart) for each, apart in columns]
        rows.append([_heading(first), *(_difference(metric) if apart else _cell(metric) for metric, apart in metrics)])
    notes = _notes(evaluation)
    if not symbols:
        rows, notes = [[_in_words(cell) for cell in row] for row in rows], [_in_words(note) for note in notes]
    return "\n".join([*aligned(rows), *notes])


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the rows of a table as lines with aligned columns; all rows have the same number of cells."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _classifier(classifier: WordClassifier) -> dict[str, Any]:
    return {"name": classifier.name, "sha256": classifier.fingerprint, "accuracy": classifier.accuracy}


def _source(clips: ClipFeatures) -> dict[str, Any]:
    counts = {"clips": len(clips), "files": clips.files}
    return {"path": str(clips.clips.root), **counts, "spectrum": spectrum_record(clips)}


def _held_out(clips: ClipFeatures) -> dict[str, Any]:
    return _source(clips) | {"preparation": asdict(clips.clips.preparation)}


def _set_record(evaluated: EvaluatedSet, extraction: Extraction) -> dict[str, Any]:
    class_names, accuracy, histogram = extraction.class_names, evaluated.accuracy, evaluated.histogram
    per_class = None if accuracy is None else dict(zip(class_names, accuracy.per_class.tolist(), strict=True))
    return {
        "name": evaluated.name,
        **_source(evaluated.clip_features),
        "recordings": evaluated.real,
        # The names "figures" (metrics) and "classes_heard" (predicted classes) belong to the file format.
        "figures": {metric.key: _metric_record(metric) for metric in evaluated.metrics},
        "classes_heard": None if histogram is None else dict(zip(class_names, histogram.tolist(), strict=True)),
        "accuracy_per_class": per_class,
        "confusion": None if accuracy is None else accuracy.confusion.tolist(),
        "notes": evaluated.notes,
        "per_clip": clip_records(evaluated, extraction.reference, class_names),
    }


def _metric_record(metric: Metric) -> dict[str, Any]:
    interval = None if metric.interval is None else [metric.interval.low, metric.interval.high]
    record: dict[str, Any] = {"title": metric.title, "value": metric.value, "interval": interval, "note": metric.note}
    if metric.difference is not None:
        apart = metric.difference
        record["difference"] = {"value": apart.value, "interval": [apart.interval.low, apart.interval.high]}
    return record


def _first_metrics(sets: list[EvaluatedSet]) -> dict[str, Metric]:
    """Return the first metric with each key; sets may lack metrics that others have."""
    found: dict[str, Metric] = {}
    for evaluated in sets:
        for metric in evaluated.metrics:
            found.setdefault(metric.key, metric)
    return found


def general_notes(extraction: Extraction) -> list[str]:
    """Return the notes on a whole evaluation: its excerpts, its features without a classifier, and its own notes."""
    windows, notes = extraction.settings.windows, []
    if windows is not None:
        reference = extraction.reference
        notes.append(f"excerpts of {windows}; the reference has {len(reference)} of {reference.files} recordings")
    if extraction.classifier is None:
        notes.append(f"features: {printable(extraction.feature_network.name)}; no classes")
    return [*notes, *extraction.notes]


def _in_words(text: str) -> str:
    for symbol, words in WORDS.items():
        text = text.replace(symbol, words)
    return text


def _heading(metric: Metric) -> str:
    arrow = {"lower": " ↓", "higher": " ↑"}.get(metric.better, "")
    return metric.title + arrow


def _find(evaluated: EvaluatedSet, key: str) -> Metric | None:
    return next((metric for metric in evaluated.metrics if metric.key == key), None)


def _has_differences(evaluated: EvaluatedSet) -> bool:
    return any(metric.difference is not None for metric in evaluated.metrics)


def _difference(metric: Metric | None) -> str:
    if metric is None or metric.difference is None:
        return "-"
    apart = metric.difference
    return f"{apart.value:+.4g} [{apart.interval.low:.4g}, {apart.interval.high:.4g}]"


def _cell(metric: Metric | None) -> str:
    if metric is None or metric.value is None or not math.isfinite(metric.value):
        return "-"
    if metric.interval is None:
        return f"{metric.value:.4g}"
    return f"{metric.value:.4g} [{metric.interval.low:.4g}, {metric.interval.high:.4g}]"


def _notes(evaluation: Evaluation) -> list[str]:
    """Return the notes of the evaluation, of the sets and of their metrics; equal notes are merged."""
    names = [evaluated.name for evaluated in evaluation.sets]
    lines = general_notes(evaluation.extraction)
    lines += [f"{printable(evaluated.name)}: {note}" for evaluated in evaluation.sets for note in evaluated.notes]
    titles: dict[tuple[str, str], list[str]] = {}  # titles of the metrics by set and note
    for evaluated in evaluation.sets:
        for metric in evaluated.metrics:
            if metric.note:
                titles.setdefault((evaluated.name, metric.note), []).append(metric.title)
    merged: dict[str, list[str]] = {}  # names of the sets by text
    for (name, note), affected in titles.items():
        merged.setdefault(f"{', '.join(affected)}: {note}", []).append(name)
    lines += [text if named == names else f"{printable(', '.join(named))}: {text}" for text, named in merged.items()]
    return ["", *lines] if lines else []
