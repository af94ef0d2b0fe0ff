"""Conversion of an evaluation to the report page, with the first clips of each class."""

from pathlib import Path

import numpy as np

from sashimi_evaluation.classifiers import WordClassifier
from sashimi_evaluation.clips import read_clip
from sashimi_evaluation.evaluation import EvaluatedSet, Evaluation
from sashimi_evaluation.feature_extraction import PROBABILITIES, PROPERTY_SECONDS, ClipFeatures
from sashimi_evaluation.report.clip_records import file_name
from sashimi_evaluation.report.data import Classifier, Clip, Method, Neighbor, ReportData
from sashimi_evaluation.report.page import write_report
from sashimi_evaluation.report.record import versions

CLIPS_PER_CLASS = 4
SECONDS = 1.0


def write_page(path: Path, evaluation: Evaluation, command: str) -> None:
    """Write the page of an evaluation, with players for the first few clips of each class of each set.

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
        "Reference": f"{reference.clips.root} ({len(reference)} clips)",
        "Intervals": f"95 %, {resampling.resamples} bootstrap resamples, seed {resampling.seed}",
    }
    if extraction.extractor is not None:
        details["Features"] = f"{extraction.extractor.name} ({extraction.extractor.fingerprint})"
    return ReportData(
        title="Evaluation of " + ", ".join(part.name for part in evaluation.sets if not part.real),
        classes=classifier.class_names,
        methods=[_method(part, reference, len(classifier.class_names)) for part in evaluation.sets],
        classifier=_classifier(classifier),
        command=command,
        versions=versions(),
        warnings=[f"{part.name}: {note}" for part in evaluation.sets for note in part.notes],
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


def _method(evaluated: EvaluatedSet, reference: ClipFeatures, classes: int) -> Method:
    features = evaluated.clip_features
    predictions = features.outputs[PROBABILITIES].argmax(axis=1)
    labels = features.clips.labels if features.clips.labeled else None
    likelihoods = features.clips.log_likelihoods
    by_class = predictions if labels is None else labels
    shown = [int(i) for index in range(classes) for i in np.flatnonzero(by_class == index)[:CLIPS_PER_CLASS]]
    return Method(
        name=evaluated.name,
        clips=[_clip(evaluated, reference, index) for index in shown],
        metrics=evaluated.metrics,
        predictions=predictions,
        labels=labels,
        log_likelihoods=likelihoods if np.isfinite(likelihoods).all() else None,
        is_reference=evaluated.real,
    )


def _clip(evaluated: EvaluatedSet, reference: ClipFeatures, index: int) -> Clip:
    features = evaluated.clip_features
    probabilities = features.outputs[PROBABILITIES][index]
    predicted = int(probabilities.argmax())
    likelihood = float(features.clips.log_likelihoods[index])
    waveform, sample_rate = _evaluated_audio(features, index)
    return Clip(
        title=file_name(features, index),
        waveform=waveform,
        sample_rate=sample_rate,
        predicted=predicted,
        probability=float(probabilities[predicted]),
        label=int(features.clips.labels[index]) if features.clips.labeled else None,
        neighbor=_neighbor(evaluated, reference, index),
        log_likelihood=likelihood if np.isfinite(likelihood) else None,
    )


def _neighbor(evaluated: EvaluatedSet, reference: ClipFeatures, index: int) -> Neighbor:
    indices, distances = evaluated.neighbors
    nearest = int(indices[index])
    waveform, sample_rate = _evaluated_audio(reference, nearest)
    return Neighbor(file_name(reference, nearest), waveform, sample_rate, float(distances[index]))


def _evaluated_audio(features: ClipFeatures, index: int) -> tuple[np.ndarray, int]:
    """Return the second of a clip that was evaluated, at the sample rate in Hz of its file or of the preparation."""
    decoded = read_clip(features.clips.files[index], PROPERTY_SECONDS)
    samples, rate = features.clips.preparation.prepare(decoded.samples, decoded.sample_rate, SECONDS)
    return samples[: round(SECONDS * rate)], rate
