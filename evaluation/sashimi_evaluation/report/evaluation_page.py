"""An evaluation as the report page: which clips are shown, and the figures beside them."""

from pathlib import Path

import numpy as np

from sashimi_diffusion.data.audio import read_audio
from sashimi_diffusion.data.speech_commands import DIGITS
from sashimi_evaluation.classifiers import DigitClassifier
from sashimi_evaluation.evaluation import Evaluation, Scored
from sashimi_evaluation.feature_extraction import PROBABILITIES, Measured
from sashimi_evaluation.report import write_report
from sashimi_evaluation.report.data import Classifier, Clip, Method, Metric, Neighbour, ReportData
from sashimi_evaluation.report.record import versions

SHOWN_PER_CLASS = 4
SECONDS = 1.0


def write_page(path: Path, evaluation: Evaluation, command: str) -> None:
    """Write the page; the first few clips of every class of every set are on it.

    Args:
        path: of the HTML file.
        evaluation: what was scored.
        command: the command line that asked for it.

    Raises:
        UserError: matplotlib is not installed.
    """
    write_report(path, report_data(evaluation, command))


def report_data(evaluation: Evaluation, command: str) -> ReportData:
    """What the page shows."""
    heard = evaluation.heard
    classifier, settings = heard.classifier, heard.settings
    details = {
        "Protocol": settings.protocol,
        "Reference": f"{heard.reference.clips.root} ({len(heard.reference)} clips)",
        "Intervals": f"95 %, {settings.resampling.resamples} bootstrap draws, seed {settings.resampling.seed}",
    }
    if heard.extractor is not None:
        details["Features"] = f"{heard.extractor.name} ({heard.extractor.fingerprint})"
    return ReportData(
        title="Evaluation of " + ", ".join(scored.name for scored in evaluation.sets if not scored.real),
        classes=classifier.class_names,
        methods=[
            _method(scored, heard.reference) for scored in sorted(evaluation.sets, key=lambda scored: not scored.real)
        ],
        classifier=_classifier(classifier),
        command=command,
        versions=versions(),
        warnings=[f"{scored.name}: {note}" for scored in evaluation.sets for note in scored.notes],
        details=details,
    )


def _classifier(classifier: DigitClassifier) -> Classifier:
    """The classifier with its accuracy over all data it was tested on, clip by clip."""
    tested = classifier.accuracy
    clips = sum(part["recordings"] for part in tested.values())
    if not clips:
        return Classifier(classifier.name, classifier.fingerprint)
    accuracy = sum(part["recordings"] * part["accuracy"] for part in tested.values()) / clips
    note = "; ".join(f"{name}: {part['accuracy']:.1%} of {part['recordings']}" for name, part in tested.items())
    return Classifier(classifier.name, classifier.fingerprint, accuracy, note)


def _method(scored: Scored, reference: Measured) -> Method:
    measured = scored.measured
    predictions = measured.outputs[PROBABILITIES].argmax(axis=1)
    likelihoods = measured.clips.log_likelihoods
    classes = measured.clips.labels if measured.clips.labelled else predictions
    return Method(
        name=scored.name,
        clips=[_clip(scored, reference, index) for index in _shown(classes)],
        metrics=[
            Metric(
                name=figure.title,
                value=float("nan") if figure.value is None else figure.value,
                low=None if figure.interval is None else figure.interval.low,
                high=None if figure.interval is None else figure.interval.high,
                better=figure.better or None,
                note=figure.note,
            )
            for figure in scored.figures
        ],
        predictions=predictions,
        labels=measured.clips.labels if measured.clips.labelled else None,
        log_likelihoods=likelihoods if np.isfinite(likelihoods).all() else None,
        is_reference=scored.real,
    )


def _shown(classes: np.ndarray) -> list[int]:
    """The first clips of each class, class after class."""
    return [int(i) for digit in range(len(DIGITS)) for i in np.flatnonzero(classes == digit)[:SHOWN_PER_CLASS]]


def _clip(scored: Scored, reference: Measured, index: int) -> Clip:
    measured = scored.measured
    probabilities = measured.outputs[PROBABILITIES][index]
    predicted = int(probabilities.argmax())
    indices, distances = scored.neighbours
    nearest = int(indices[index])
    likelihood = float(measured.clips.log_likelihoods[index])
    waveform, rate = _heard(measured, index)
    neighbour_waveform, neighbour_rate = _heard(reference, nearest)
    return Clip(
        title=_title(measured, index),
        waveform=waveform,
        sample_rate=rate,
        predicted=predicted,
        probability=float(probabilities[predicted]),
        label=int(measured.clips.labels[index]) if measured.clips.labelled else None,
        neighbour=Neighbour(_title(reference, nearest), neighbour_waveform, neighbour_rate, float(distances[index])),
        log_likelihood=likelihood if np.isfinite(likelihood) else None,
    )


def _title(measured: Measured, index: int) -> str:
    return measured.clips.files[index].relative_to(measured.clips.root).as_posix()


def _heard(measured: Measured, index: int) -> tuple[np.ndarray, int]:
    """The second of a clip that was scored, at the rate of its file."""
    rate = int(measured.facts["rate"][index])
    return read_audio(measured.clips.files[index])[: round(SECONDS * rate)], rate
