"""Conversion of an evaluation to the report page, with the first clips of each class."""

from pathlib import Path

import numpy as np

from sashimi_evaluation.classifiers import WordClassifier
from sashimi_evaluation.clips import read_clip
from sashimi_evaluation.evaluation import EvaluatedSet, Evaluation
from sashimi_evaluation.excerpts import Windows, prepared_excerpt, read_excerpt
from sashimi_evaluation.extraction import Extraction
from sashimi_evaluation.feature_extraction import PROBABILITIES, PROPERTY_SECONDS, ClipFeatures
from sashimi_evaluation.report.clip_records import file_name
from sashimi_evaluation.report.data import Classifier, Clip, Method, Neighbor, ReportData
from sashimi_evaluation.report.page import write_report
from sashimi_evaluation.report.record import general_notes, versions

CLIPS_PER_CLASS = 4
CLIPS_WITHOUT_CLASS = 12
SECONDS = 1.0


def write_page(path: Path, evaluation: Evaluation, command: str) -> None:
    """Write the page of an evaluation, with players for the first few clips of each class of each set.

    Without classes, there are twelve clips of each set, evenly spaced.

    Args:
        path: the HTML file.
        evaluation: the evaluated sets.
        command: the command line that produced it.

    Raises:
        UserError: matplotlib is not installed, or the file cannot be written.
    """
    write_report(path, report_data(evaluation, command))


def report_data(evaluation: Evaluation, command: str) -> ReportData:
    """Return the content of the page."""
    extraction = evaluation.extraction
    classifier, reference, settings = extraction.classifier, extraction.reference, extraction.settings
    resampling = settings.resampling
    details = {
        "Protocol": settings.protocol,
        "Reference": f"{reference.clips.root} ({_counted(reference)})",
        "Intervals": f"95 %, {resampling.resamples} bootstrap resamples, seed {resampling.seed}",
    }
    if settings.windows is not None:
        details["Excerpts"] = str(settings.windows)
    if extraction.extractor is not None:
        details["Features"] = f"{extraction.extractor.name} ({extraction.extractor.fingerprint})"
    return ReportData(
        title="Evaluation of " + ", ".join(part.name for part in evaluation.sets if not part.real),
        classes=extraction.class_names,
        methods=[_method(part, extraction) for part in evaluation.sets],
        classifier=None if classifier is None else _classifier(classifier),
        command=command,
        versions=versions(),
        warnings=[
            *general_notes(extraction),
            *(f"{part.name}: {note}" for part in evaluation.sets for note in part.notes),
        ],
        details=details,
    )


def _classifier(classifier: WordClassifier) -> Classifier:
    """Return the classifier with its accuracy over the clips of all its test sets."""
    needed = ("recordings", "accuracy")
    tests = {
        name: test for name, test in classifier.accuracy.items() if None not in [test.get(metric) for metric in needed]
    }
    clips = sum(test["recordings"] for test in tests.values())
    if not clips:
        return Classifier(classifier.name, classifier.fingerprint)
    accuracy = sum(test["recordings"] * test["accuracy"] for test in tests.values()) / clips
    note = "; ".join(f"{name}: {test['accuracy']:.1%} of {test['recordings']}" for name, test in tests.items())
    return Classifier(classifier.name, classifier.fingerprint, accuracy, note)


def _counted(features: ClipFeatures) -> str:
    if features.recordings is None:
        return f"{len(features):,} clip{'s' if len(features) != 1 else ''}"
    return f"{len(features):,} excerpts of {features.files:,} recording{'s' if features.files != 1 else ''}"


def _method(evaluated: EvaluatedSet, extraction: Extraction) -> Method:
    features = evaluated.clip_features
    probabilities = features.outputs.get(PROBABILITIES)
    predictions = np.empty(0, dtype=np.int64) if probabilities is None else probabilities.argmax(axis=1)
    labels = features.clips.labels if probabilities is not None and features.clips.labeled else None
    likelihoods = features.clips.log_likelihoods
    by_class, classes = predictions if labels is None else labels, range(len(extraction.class_names))
    shown = [int(i) for index in classes for i in np.flatnonzero(by_class == index)[:CLIPS_PER_CLASS]]
    if probabilities is None:
        shown = np.unique(np.linspace(0, len(features) - 1, CLIPS_WITHOUT_CLASS).round().astype(int)).tolist()
    return Method(
        name=evaluated.name,
        clips=[_clip(evaluated, extraction, index) for index in shown],
        metrics=evaluated.metrics,
        count=_counted(features),
        predictions=predictions,
        labels=labels,
        log_likelihoods=likelihoods if np.isfinite(likelihoods).all() else None,
        is_reference=evaluated.real,
    )


def _clip(evaluated: EvaluatedSet, extraction: Extraction, index: int) -> Clip:
    features = evaluated.clip_features
    predicted = probability = label = None
    if PROBABILITIES in features.outputs:
        probabilities = features.outputs[PROBABILITIES][index]
        predicted, probability = int(probabilities.argmax()), float(probabilities.max())
        label = int(features.clips.labels[index]) if features.clips.labeled else None
    likelihood = float(features.clips.log_likelihoods[index])
    waveform, sample_rate = _evaluated_audio(features, index, extraction.settings.windows)
    return Clip(
        title=_title(features, index),
        waveform=waveform,
        sample_rate=sample_rate,
        predicted=predicted,
        probability=probability,
        label=label,
        neighbor=_neighbor(evaluated, extraction, index),
        log_likelihood=likelihood if np.isfinite(likelihood) else None,
    )


def _title(features: ClipFeatures, index: int) -> str:
    name = file_name(features, index)
    return name if features.recordings is None else f"{name} at {features.properties['start'][index]:.5g} s"


def _neighbor(evaluated: EvaluatedSet, extraction: Extraction, index: int) -> Neighbor:
    (indices, distances), reference = evaluated.neighbors, extraction.reference
    nearest = int(indices[index])
    waveform, sample_rate = _evaluated_audio(reference, nearest, extraction.settings.windows)
    return Neighbor(_title(reference, nearest), waveform, sample_rate, float(distances[index]))


def _evaluated_audio(features: ClipFeatures, index: int, windows: Windows | None) -> tuple[np.ndarray, int]:
    """Return the second of a clip, or the first ten seconds of an excerpt, that were evaluated, and the rate in Hz.

    The rate is that of the file or of the preparation.
    """
    path, preparation, properties = features.clips.files[index], features.clips.preparation, features.properties
    if windows is not None:
        seconds = min(windows.seconds, PROPERTY_SECONDS)
        samples, rate = read_excerpt(path, float(properties["start"][index]), seconds)
        return prepared_excerpt(samples, rate, preparation, float(properties["gain"][index]))
    decoded = read_clip(path, PROPERTY_SECONDS)
    samples, rate = preparation.prepare(decoded.samples, decoded.sample_rate, SECONDS)
    return samples[: round(SECONDS * rate)], rate
