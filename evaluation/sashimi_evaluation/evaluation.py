"""Evaluation of folders of clips against real recordings: the metrics of the extracted features."""

from dataclasses import dataclass, replace

import numpy as np

from sashimi_evaluation.extraction import Extraction
from sashimi_evaluation.extractors import is_named
from sashimi_evaluation.feature_extraction import FEATURES, PROBABILITIES, ClipFeatures
from sashimi_evaluation.metrics.differences import with_differences
from sashimi_evaluation.metrics.distances import compute_nearest_neighbors
from sashimi_evaluation.metrics.frechet import frechet_metrics
from sashimi_evaluation.metrics.harmonics import harmonic_metrics
from sashimi_evaluation.metrics.inception import inception_metrics
from sashimi_evaluation.metrics.intervals import Resampling
from sashimi_evaluation.metrics.kid import kernel_metrics
from sashimi_evaluation.metrics.label_accuracy import (
    Accuracy,
    compute_class_histogram,
    compute_label_accuracy,
    label_accuracy_metrics,
)
from sashimi_evaluation.metrics.likelihood import likelihood_metrics
from sashimi_evaluation.metrics.memorization import memorization_metrics
from sashimi_evaluation.metrics.metric import Metric
from sashimi_evaluation.metrics.music import music_metrics
from sashimi_evaluation.metrics.ndb import ndb_metrics
from sashimi_evaluation.metrics.official import official_metrics
from sashimi_evaluation.metrics.precision_recall import precision_recall_metrics
from sashimi_evaluation.metrics.signal import signal_metrics
from sashimi_evaluation.metrics.spectrum import spectrum_metrics
from sashimi_evaluation.notes import notes_of


@dataclass(frozen=True)
class EvaluatedSet:
    """One set of clips with its metrics.

    Args:
        clip_features: the clips and their features.
        metrics: metrics in the order of the report.
        histogram: number of clips of each predicted class, int64 (classes,), or None without a classifier.
        accuracy: label accuracy, or None if a label is unknown or there is no classifier.
        neighbors: index of the nearest reference clip of each clip, int64 (n,), and the distance to it, float64 (n,).
        notes: limitations of the metrics.
        real: whether the clips are held-out recordings instead of generated samples.
    """

    clip_features: ClipFeatures
    metrics: list[Metric]
    histogram: np.ndarray | None
    accuracy: Accuracy | None
    neighbors: tuple[np.ndarray, np.ndarray]
    notes: list[str]
    real: bool = False

    @property
    def name(self) -> str:
        """Name of the set in reports."""
        return self.clip_features.clips.name


@dataclass(frozen=True)
class Evaluation:
    """All sets with their metrics, with the held-out recordings last, and the features that were evaluated."""

    sets: list[EvaluatedSet]
    extraction: Extraction


def evaluate(extraction: Extraction) -> Evaluation:
    """Compute the metrics of every set against the reference.

    Raises:
        UserError: the protocol needs a package that is not installed, the median distance between two reference clips
            is 0, or at least half of the held-out clips are in the reference.
    """
    held_out, held_out_distances = [], None
    if extraction.held_out is not None:
        held_out = [_evaluate_set(extraction.held_out, extraction, None, real=True)]
        held_out_distances = held_out[0].neighbors[1]
    sets = [_evaluate_set(clips, extraction, held_out_distances) for clips in extraction.sets]
    if held_out:
        baseline, seed = held_out[0].metrics, extraction.settings.resampling.seed
        sets = [replace(each, metrics=with_differences(each.metrics, baseline, seed)) for each in sets]
    return Evaluation(sets + held_out, extraction)


def distance_metrics(
    reference: np.ndarray, features: np.ndarray, resampling: Resampling, name: str = "FID"
) -> list[Metric]:
    """Return FID, its extrapolation, KID, KAD, precision, recall, density, coverage, NDB and Jensen-Shannon divergence.

    Args:
        reference: features of the real clips, float64 (n, d).
        features: features of the clips to evaluate, float64 (m, d).
        resampling: settings of the confidence intervals.
        name: name of the Fréchet distance in tables.

    Raises:
        UserError: the median distance between two reference clips is 0.
    """
    if min(len(reference), len(features)) < 2:
        return [Metric("fid", name, None, better="lower", note="needs at least two clips in each set")]
    return [
        *frechet_metrics(reference, features, resampling, name),
        *kernel_metrics(reference, features, resampling),
        *precision_recall_metrics(reference, features, resampling),
        *ndb_metrics(reference, features, resampling),
    ]


def _evaluate_set(
    clip_features: ClipFeatures, extraction: Extraction, held_out_distances: np.ndarray | None, real: bool = False
) -> EvaluatedSet:
    """Evaluate one set; ``held_out_distances`` (m,) are the distances of held-out recordings to the reference."""
    reference, settings, clips = extraction.reference, extraction.settings, clip_features.clips
    features, real_features = clip_features.outputs[FEATURES], reference.outputs[FEATURES]
    probabilities = clip_features.outputs.get(PROBABILITIES)
    neighbors = compute_nearest_neighbors(features, real_features)
    if settings.protocol == "sashimi-icml22":
        assert probabilities is not None  # the extraction refuses the protocol without a classifier
        real_probabilities = reference.outputs[PROBABILITIES]
        metrics = official_metrics(real_features, real_probabilities, features, probabilities, clips.log_likelihoods)
    else:
        metrics = _metrics(clip_features, extraction, neighbors[1], held_out_distances)
    accuracy = None
    if probabilities is not None and clips.labeled:
        accuracy = compute_label_accuracy(probabilities, clips.labels)
    return EvaluatedSet(
        clip_features=clip_features,
        metrics=metrics,
        histogram=None if probabilities is None else compute_class_histogram(probabilities),
        accuracy=accuracy,
        neighbors=neighbors,
        notes=notes_of(clip_features, extraction),
        real=real,
    )


def _metrics(
    clips: ClipFeatures, extraction: Extraction, distances: np.ndarray, held_out_distances: np.ndarray | None
) -> list[Metric]:
    """Return the metrics of one set; ``distances`` (n,) are those of its clips to their nearest reference clips."""
    reference, settings = extraction.reference, extraction.settings
    held_out = None if extraction.held_out is None else extraction.held_out.recordings
    resampling = replace(settings.resampling, clips=clips.recordings, reference=reference.recordings, held_out=held_out)
    name = "FAD" if is_named(extraction.extractor) else "FID"
    metrics = [
        *distance_metrics(reference.outputs[FEATURES], clips.outputs[FEATURES], resampling, name),
        *(_class_metrics if PROBABILITIES in clips.outputs else _note_metrics)(clips, reference, resampling),
        *memorization_metrics(distances, held_out_distances, resampling),
        *signal_metrics(clips.properties, resampling),
        *harmonic_metrics(clips.properties, resampling),
        *spectrum_metrics(reference.properties, clips.properties, resampling, settings.lines),
        *likelihood_metrics(clips.whole().bits_per_sample, settings.resampling),
    ]
    if clips.files > 1:
        return metrics
    # A note says so. Excerpts of one recording are no sample of recordings, and a single clip has nothing to resample.
    return [replace(metric, interval=None) if _is_resampled(metric, clips) else metric for metric in metrics]


def _is_resampled(metric: Metric, clips: ClipFeatures) -> bool:
    """Return whether the interval of a metric is no Wilson interval of a single clip, which is wide enough."""
    return clips.recordings is not None or (metric.interval is not None and metric.interval.deviations is not None)


def _class_metrics(clips: ClipFeatures, reference: ClipFeatures, resampling: Resampling) -> list[Metric]:
    """Return the metrics of the class probabilities."""
    probabilities, labels = clips.outputs[PROBABILITIES], clips.clips.labels
    return [
        *inception_metrics(reference.outputs[PROBABILITIES], probabilities, resampling),
        *(label_accuracy_metrics(probabilities, labels, resampling) if clips.clips.labeled else []),
    ]


def _note_metrics(clips: ClipFeatures, reference: ClipFeatures, resampling: Resampling) -> list[Metric]:
    """Return the metrics of musical notes; classes stand for words, in which there are none."""
    return music_metrics(reference.properties, clips.properties, resampling)
