"""Validation of a report before it is rendered."""

import numpy as np

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.report.data import Clip, Method, ReportData


def check_report(report: ReportData) -> None:
    """Raise an error if names, shapes or class indices are invalid.

    Raises:
        UserError: names the method or clip, the expected value and the actual one.
    """
    if not report.methods:
        raise UserError("a report needs at least one method, got none")
    if (report.classifier is None) != (not report.classes):
        found = "got none" if report.classifier else "got no classifier"
        raise UserError(f"a report needs the names of the classes and a classifier, or neither: {found}")
    names = [method.name for method in report.methods]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise UserError(f"two methods are called {repeated!r}: give each method a different name")
    for method in report.methods:
        _check_method(method, len(report.classes))
        for clip in method.clips:
            _check_clip(clip, f"clip {clip.title!r} of {method.name!r}", len(report.classes))


def _check_method(method: Method, classes: int) -> None:
    shape = method.predictions.shape
    _check_classes(method.predictions, f"the predictions of {method.name!r}", classes)
    for name, values in {"labels": method.labels, "log_likelihoods": method.log_likelihoods}.items():
        if values is not None and values.shape != shape:
            raise UserError(f"{method.name!r} has {name} of shape {values.shape} for predictions of shape {shape}")
    if method.labels is not None:
        _check_classes(method.labels, f"the labels of {method.name!r}", classes)


def _check_classes(indices: np.ndarray, what: str, classes: int) -> None:
    if indices.ndim != 1:
        raise UserError(f"{what} must have shape (N,), got {indices.shape}")
    if indices.size == 0:
        return
    if not np.issubdtype(indices.dtype, np.integer) or indices.min() < 0 or indices.max() >= classes:
        raise UserError(f"{what} must be integers from 0 to {classes - 1}, got {indices.min()} to {indices.max()}")


def _check_clip(clip: Clip, what: str, classes: int) -> None:
    for waveform in [clip.waveform] if clip.neighbor is None else [clip.waveform, clip.neighbor.waveform]:
        if waveform.ndim != 1 or not waveform.size:
            raise UserError(f"{what}: expected non-empty waveforms of shape (length,), got {waveform.shape}")
    for index in (clip.predicted, clip.label):
        if index is not None and not 0 <= index < classes:
            raise UserError(f"{what}: expected classes from 0 to {classes - 1}, got class {index}")
