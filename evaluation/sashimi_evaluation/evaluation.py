"""Evaluation of folders of clips against real recordings: extract features, then compute all metrics."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from sashimi_diffusion.data.levels import USUAL_PEAK
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.generation.likelihood import likelihood_window
from sashimi_diffusion.terminal import one_line, printable
from sashimi_evaluation.classifiers import WordClassifier
from sashimi_evaluation.clips import ClipFolder
from sashimi_evaluation.extractors import FeatureExtractor
from sashimi_evaluation.feature_extraction import (
    FEATURES,
    PROBABILITIES,
    ClipFeatures,
    ClipNetwork,
    extract_clip_features,
)
from sashimi_evaluation.metrics.arrays import check_same_width, feature_matrix, probability_matrix
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
from sashimi_evaluation.metrics.ndb import ndb_metrics
from sashimi_evaluation.metrics.official import official_metrics
from sashimi_evaluation.metrics.precision_recall import precision_recall_metrics
from sashimi_evaluation.metrics.signal import signal_metrics
from sashimi_evaluation.metrics.spectrum import LINES, spectrum_metrics

PROTOCOLS = ("default", "sashimi-icml22")


@dataclass(frozen=True)
class Settings:
    """Settings of an evaluation.

    Args:
        protocol: "default", or "sashimi-icml22": the metrics of the official code, including its errors.
        resampling: settings of the confidence intervals.
        window: likelihood window: fractions of the least and of the most likely clips to leave out; None to keep all.
        cache_dir: folder of the feature cache; None: the default folder.
        skip_bad_files: warn about unusable files and continue without them.
        lines: frequencies in Hz at which lines in the spectrum are looked for.
    """

    protocol: str = "default"
    resampling: Resampling = field(default_factory=Resampling)
    window: tuple[float, float] | None = None
    cache_dir: Path | None = None
    skip_bad_files: bool = False
    lines: tuple[float, ...] = LINES


@dataclass(frozen=True)
class Extraction:
    """The features of all clips, and the networks that computed them.

    ``outputs`` of every set has the validated float64 arrays ``FEATURES`` (n, d) and ``PROBABILITIES`` (n, classes).

    Args:
        sets: the clips to evaluate.
        reference: real clips that the sets are compared with; the papers use the training set.
        held_out: real clips outside of the reference, or None. They are evaluated like a set. Their distances to the
            reference are the baseline of the memorization metrics.
        classifier: the classifier that computed the probabilities, and the features if there is no ``extractor``.
        extractor: the network that computed the features, or None.
        settings: see :class:`Settings`.
    """

    sets: list[ClipFeatures]
    reference: ClipFeatures
    held_out: ClipFeatures | None
    classifier: WordClassifier
    extractor: FeatureExtractor | None
    settings: Settings


@dataclass(frozen=True)
class EvaluatedSet:
    """One set of clips with its metrics.

    Args:
        clip_features: the clips and their features.
        metrics: metrics in the order of the report.
        histogram: number of clips of each predicted class, int64 (classes,).
        accuracy: label accuracy, or None if a label is unknown.
        neighbors: index of the nearest reference clip of each clip, int64 (n,), and the distance to it, float64 (n,).
        notes: limitations of the metrics.
        real: whether the clips are held-out recordings instead of generated samples.
    """

    clip_features: ClipFeatures
    metrics: list[Metric]
    histogram: np.ndarray
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


def extract_features(
    sets: Sequence[ClipFolder],
    reference: ClipFolder,
    held_out: ClipFolder | None,
    classifier: WordClassifier,
    extractor: FeatureExtractor | None = None,
    settings: Settings | None = None,
) -> Extraction:
    """Extract the features of all clips.

    With ``accelerate launch`` the processes divide the work, and each process returns all results.

    Args:
        sets: the clips to evaluate.
        reference: real clips that the sets are compared with.
        held_out: real clips outside of the reference, or None.
        classifier: network for the class probabilities, and for the features if there is no ``extractor``.
        extractor: network for the features, or None.
        settings: settings of the evaluation; default: ``Settings()``.

    Raises:
        UserError: a file cannot be used, the outputs of a network are invalid, or there is a likelihood window but no
            likelihoods.
    """
    settings = settings or Settings()
    if settings.window is not None:
        for clips in sets:
            _in_window(clips, settings.window)  # a set without likelihoods is refused before the work
    reference_features = _extract(reference, classifier, extractor, settings)
    held_out_features = None if held_out is None else _extract(held_out, classifier, extractor, settings)
    set_features = [_extract(clips, classifier, extractor, settings) for clips in sets]
    if settings.window is not None:
        set_features = [features.select(_in_window(features.clips, settings.window)) for features in set_features]
    for other in [*set_features, *([] if held_out_features is None else [held_out_features])]:
        check_same_width(
            (reference_features.outputs[FEATURES], other.outputs[FEATURES]),
            ("the features of the reference", f"those of {other.clips.name}"),
            "the extractor must return the same number of features for all clips",
        )
    return Extraction(set_features, reference_features, held_out_features, classifier, extractor, settings)


def evaluate(extraction: Extraction) -> Evaluation:
    """Compute the metrics of every set against the reference.

    Raises:
        UserError: the protocol needs a package that is not installed, the median distance between two reference clips
            is 0, or at least half of the held-out clips are in the reference.
    """
    reference, settings = extraction.reference, extraction.settings
    held_out, held_out_distances = [], None
    if extraction.held_out is not None:
        held_out = [_evaluate_set(extraction.held_out, reference, None, settings, real=True)]
        held_out_distances = held_out[0].neighbors[1]
    sets = [_evaluate_set(clips, reference, held_out_distances, settings) for clips in extraction.sets]
    if held_out:
        baseline, seed = held_out[0].metrics, settings.resampling.seed
        sets = [replace(each, metrics=with_differences(each.metrics, baseline, seed)) for each in sets]
    return Evaluation(sets + held_out, extraction)


def distance_metrics(reference: np.ndarray, features: np.ndarray, resampling: Resampling) -> list[Metric]:
    """Return FID, its extrapolation, KID, KAD, precision, recall, density, coverage, NDB and Jensen-Shannon divergence.

    Args:
        reference: features of the real clips, float64 (n, d).
        features: features of the clips to evaluate, float64 (m, d).
        resampling: settings of the confidence intervals.

    Raises:
        UserError: the median distance between two reference clips is 0.
    """
    if min(len(reference), len(features)) < 2:
        return [Metric("fid", "FID", None, better="lower", note="needs at least two clips in each set")]
    return [
        *frechet_metrics(reference, features, resampling),
        *kernel_metrics(reference, features, resampling),
        *precision_recall_metrics(reference, features, resampling),
        *ndb_metrics(reference, features, resampling),
    ]


def _extract(
    clips: ClipFolder, classifier: WordClassifier, extractor: FeatureExtractor | None, settings: Settings
) -> ClipFeatures:
    def classify(audio: np.ndarray) -> dict[str, np.ndarray]:
        features, probabilities = classifier.classify(audio, classifier.sample_rate)
        return {FEATURES: features, PROBABILITIES: probabilities}

    network = ClipNetwork(classify, classifier.fingerprint, classifier.sample_rate, classifier.seconds)
    labeled = clips.labeled_by(classifier.class_names)
    extracted = extract_clip_features(labeled, network, settings.cache_dir, settings.skip_bad_files)
    features = extracted.outputs[FEATURES]
    if extractor is not None:
        by_extractor = _run_extractor(extracted.clips, extractor, classifier.seconds, settings)
        usable = set(by_extractor.clips.files)
        extracted = extracted.select(np.flatnonzero([file in usable for file in extracted.clips.files]))
        features = by_extractor.outputs[FEATURES]
    probabilities = extracted.outputs[PROBABILITIES]
    outputs = {
        FEATURES: feature_matrix(features, f"the features of {clips.name}"),
        PROBABILITIES: probability_matrix(probabilities, f"the class probabilities of {clips.name}"),
    }
    return replace(extracted, outputs=outputs)


def _run_extractor(clips: ClipFolder, extractor: FeatureExtractor, seconds: float, settings: Settings) -> ClipFeatures:
    def compute(audio: np.ndarray) -> dict[str, np.ndarray]:
        try:
            features = np.asarray(extractor.features(audio, extractor.sample_rate), dtype=np.float64)
        except Exception as error:  # of the user's code
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise UserError(f"the feature extractor {printable(extractor.name)} failed ({reason})") from error
        if features.ndim != 2 or len(features) != len(audio) or features.shape[1] == 0:
            raise UserError(
                f"the feature extractor {printable(extractor.name)} returned the shape {features.shape}: "
                f"expected one row of features for each of {len(audio)} clips"
            )
        return {FEATURES: features}

    network = ClipNetwork(compute, extractor.fingerprint, extractor.sample_rate, seconds)
    return extract_clip_features(clips, network, settings.cache_dir, settings.skip_bad_files)


def _in_window(clips: ClipFolder, window: tuple[float, float]) -> np.ndarray:
    """Return the indices of the clips that the likelihood window keeps."""
    if not np.isfinite(clips.log_likelihoods).all():
        raise UserError(
            f"--likelihood-window needs the log-likelihood of every clip of {printable(clips.root)}: expected the "
            "samples.json that sashimi-sample writes for an autoregressive pipeline"
        )
    return likelihood_window(clips.log_likelihoods, *window)


def _evaluate_set(
    clip_features: ClipFeatures,
    reference: ClipFeatures,
    held_out_distances: np.ndarray | None,
    settings: Settings,
    real: bool = False,
) -> EvaluatedSet:
    """Evaluate one set; ``held_out_distances`` (m,) are the distances of held-out recordings to the reference."""
    features, probabilities = clip_features.outputs[FEATURES], clip_features.outputs[PROBABILITIES]
    real_features, real_probabilities = reference.outputs[FEATURES], reference.outputs[PROBABILITIES]
    resampling, clips = settings.resampling, clip_features.clips
    neighbors = compute_nearest_neighbors(features, real_features)
    if settings.protocol == "sashimi-icml22":
        metrics = official_metrics(real_features, real_probabilities, features, probabilities, clips.log_likelihoods)
    else:
        metrics = [
            *distance_metrics(real_features, features, resampling),
            *inception_metrics(real_probabilities, probabilities, resampling),
            *(label_accuracy_metrics(probabilities, clips.labels, resampling) if clips.labeled else []),
            *memorization_metrics(neighbors[1], held_out_distances, resampling),
            *signal_metrics(clip_features.properties, resampling),
            *harmonic_metrics(clip_features.properties, resampling),
            *spectrum_metrics(reference.properties, clip_features.properties, resampling, settings.lines),
            *likelihood_metrics(clips.bits_per_sample, resampling),
        ]
    return EvaluatedSet(
        clip_features=clip_features,
        metrics=metrics,
        histogram=compute_class_histogram(probabilities),
        accuracy=compute_label_accuracy(probabilities, clips.labels) if clips.labeled else None,
        neighbors=neighbors,
        notes=[
            *clips.notes,
            *_preprocessing_notes(clip_features),
            *_level_notes(clip_features),
            *_overlap_notes(clip_features, reference),
            *_window_notes(settings.window),
        ],
        real=real,
    )


def _preprocessing_notes(clips: ClipFeatures) -> list[str]:
    notes, properties, count = [], clips.properties, len(clips)
    rates = Counter(int(rate) for rate in properties["rate"])
    if set(rates) != {16000}:
        listing = ", ".join(f"{number} of {count} at {rate} Hz" for rate, number in sorted(rates.items()))
        notes.append(f"resampled to 16000 Hz: {listing}")
    mixed = int((properties["channels"] > 1).sum())
    if mixed:
        notes.append(f"mixed down to mono: {mixed} of {count} clips have more than one channel")
    cropped = int((properties["seconds"] > 1).sum())
    if cropped:
        notes.append(f"only the first second is used: {cropped} of {count} clips are longer")
    return notes


def _level_notes(clips: ClipFeatures) -> list[str]:
    high = int((clips.properties["peak"] > USUAL_PEAK).sum())
    if not high:
        return []
    return [
        f"{high} of {len(clips)} clips have samples above {USUAL_PEAK:g} although full scale is 1: 16-bit integers "
        "stored as floating point?"
    ]


def _overlap_notes(clips: ClipFeatures, reference: ClipFeatures) -> list[str]:
    known = set(reference.fingerprints)
    same = sum(text in known for text in clips.fingerprints)
    if not same:
        return []
    return [
        f"{same} of {len(clips)} clips are also in the reference, so metrics that depend on distances are too good: "
        "choose a reference that does not contain the clips"
    ]


def _window_notes(window: tuple[float, float] | None) -> list[str]:
    if window is None:
        return []
    low, high = window
    return [f"likelihood window: the {low:.0%} least and the {high:.0%} most likely clips are left out"]
