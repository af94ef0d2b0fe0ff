"""Refusing reports whose parts contradict each other, before anything is drawn."""

import numpy as np

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.report.data import Clip, Method, ReportData


def check_report(report: ReportData) -> None:
    """Checks names, shapes and classes.

    Raises:
        UserError: naming the method or clip, what was expected and what it has.
    """
    if not report.methods:
        raise UserError("a report needs at least one method, got none")
    if not report.classes:
        raise UserError("a report needs the names of the classes, got none")
    names = [method.name for method in report.methods]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"two methods are called {twice!r}: give each a name of its own")
    for method in report.methods:
        _check_method(method, len(report.classes))
        for clip in method.clips:
            _check_clip(clip, f"clip {clip.title!r} of {method.name!r}", len(report.classes))


def _check_method(method: Method, classes: int) -> None:
    predictions = np.asarray(method.predictions)
    _check_classes(predictions, f"the predictions of {method.name!r}", classes)
    for what, values in {"labels": method.labels, "log_likelihoods": method.log_likelihoods}.items():
        if values is not None and np.shape(values) != predictions.shape:
            raise UserError(
                f"{method.name!r} has {what} of shape {np.shape(values)} for predictions of shape {predictions.shape}"
            )
    if method.labels is not None:
        _check_classes(np.asarray(method.labels), f"the labels of {method.name!r}", classes)


def _check_classes(indices: np.ndarray, what: str, classes: int) -> None:
    if indices.ndim != 1:
        raise UserError(f"{what} must have shape (N,), got {indices.shape}")
    if indices.size == 0:
        return
    if not np.issubdtype(indices.dtype, np.integer) or indices.min() < 0 or indices.max() >= classes:
        raise UserError(f"{what} must be whole numbers from 0 to {classes - 1}, one for each of the classes")


def _check_clip(clip: Clip, what: str, classes: int) -> None:
    waveforms = [clip.waveform] if clip.neighbour is None else [clip.waveform, clip.neighbour.waveform]
    shape = next(
        (np.shape(waveform) for waveform in waveforms if np.ndim(waveform) != 1 or not np.size(waveform)), None
    )
    if shape is not None:
        raise UserError(f"{what}: expected waveforms of shape (length,) that are not empty, got {shape}")
    for index in (clip.predicted, clip.label):
        if index is not None and not 0 <= index < classes:
            raise UserError(f"{what}: class {index} is not one of 0 to {classes - 1}")
