"""Scoring folders of clips against real recordings: everything `sashimi-evaluate` reports, as plain data."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.generation.likelihood import likelihood_window
from sashimi_evaluation.classifiers import DigitClassifier
from sashimi_evaluation.clips import ClipFolder
from sashimi_evaluation.extractors import FeatureExtractor
from sashimi_evaluation.feature_extraction import FEATURES, PROBABILITIES, Listener, Measured, measure
from sashimi_evaluation.metrics.distances import nearest_neighbours
from sashimi_evaluation.metrics.figures import (
    Figure,
    Resampling,
    classifier_figures,
    distance_figures,
    label_figures,
    likelihood_figures,
    memorization_figures,
    signal_figures,
)
from sashimi_evaluation.metrics.label_accuracy import Accuracy, class_histogram, label_accuracy
from sashimi_evaluation.protocols import official_figures

PROTOCOLS = ("default", "sashimi-icml22")


@dataclass(frozen=True)
class Settings:
    """How sets are scored.

    Args:
        protocol: "default", or "sashimi-icml22": the official code's figures, its bugs included.
        resampling: of the intervals.
        window: shares of the least and the most likely clips that are left out first, or None.
        cache_dir: where what was heard is kept; None: the default place.
        skip_bad_files: warn of files that cannot be used and go on without them.
    """

    protocol: str = "default"
    resampling: Resampling = field(default_factory=Resampling)
    window: tuple[float, float] | None = None
    cache_dir: Path | None = None
    skip_bad_files: bool = False


@dataclass(frozen=True)
class Scored:
    """One set of clips with its figures.

    Args:
        measured: the clips and what was heard of them.
        figures: in the order of the report.
        histogram: clips that the classifier hears as each class, int64 (classes,).
        accuracy: of the labels, or None where they are not all known.
        neighbours: of each clip the nearest reference clip, int64 (n,), and its distance (n,).
        notes: what must be known beside the figures.
        real: whether these are recordings rather than samples.
    """

    measured: Measured
    figures: list[Figure]
    histogram: np.ndarray
    accuracy: Accuracy | None
    neighbours: tuple[np.ndarray, np.ndarray]
    notes: list[str]
    real: bool = False

    @property
    def name(self) -> str:
        """What reports call the set."""
        return self.measured.clips.name


@dataclass(frozen=True)
class Heard:
    """All clips after they were heard, and what heard them.

    Args:
        sets: the clips to score.
        reference: the real clips that distances are measured to; the papers take the training set.
        held_out: other real clips, or None: they are scored like a set, and show what is normal for one that memorized
            nothing.
        classifier: gave the probabilities, and the features where there is no ``extractor``.
        extractor: gave the features, or None.
        settings: see :class:`Settings`.
    """

    sets: list[Measured]
    reference: Measured
    held_out: Measured | None
    classifier: DigitClassifier
    extractor: FeatureExtractor | None
    settings: Settings


@dataclass(frozen=True)
class Evaluation:
    """All sets with their figures, the held-out recordings last, and what the figures were computed from."""

    sets: list[Scored]
    heard: Heard


def hear(
    sets: Sequence[ClipFolder],
    reference: ClipFolder,
    held_out: ClipFolder | None,
    classifier: DigitClassifier,
    extractor: FeatureExtractor | None = None,
    settings: Settings | None = None,
) -> Heard:
    """Listen to all clips; with ``accelerate launch`` the processes share the work, and each has all results.

    Raises:
        UserError: files that cannot be used, or a likelihood window where likelihoods are not known.
    """
    settings = settings or Settings()
    measured = [
        None if clips is None else _measure(clips, classifier, extractor, settings)
        for clips in (reference, held_out, *sets)
    ]
    windowed = [_windowed(each, settings.window) for each in measured[2:]]
    return Heard(windowed, measured[0], measured[1], classifier, extractor, settings)


def evaluate(heard: Heard) -> Evaluation:
    """Score every set by itself against the reference.

    Raises:
        UserError: the protocol needs a package that is not installed.
    """
    reference, settings = heard.reference, heard.settings
    held_out = [] if heard.held_out is None else [_score(heard.held_out, reference, None, settings, real=True)]
    usual = held_out[0].neighbours[1] if held_out else None
    sets = [_score(measured, reference, usual, settings) for measured in heard.sets]
    return Evaluation(sets + held_out, heard)


def _measure(
    clips: ClipFolder, classifier: DigitClassifier, extractor: FeatureExtractor | None, settings: Settings
) -> Measured:
    def classify(audio: np.ndarray) -> dict[str, np.ndarray]:
        features, probabilities = classifier.classify(audio, classifier.sample_rate)
        return {FEATURES: features, PROBABILITIES: probabilities}

    listener = Listener(classify, classifier.fingerprint, classifier.sample_rate, classifier.seconds)
    measured = measure(clips, listener, settings.cache_dir, settings.skip_bad_files)
    if extractor is None:
        return measured

    def extract(audio: np.ndarray) -> dict[str, np.ndarray]:
        return {FEATURES: np.asarray(extractor.features(audio, extractor.sample_rate))}

    listener = Listener(extract, extractor.fingerprint, extractor.sample_rate, classifier.seconds)
    other = measure(measured.clips, listener, settings.cache_dir)
    measured.outputs[FEATURES] = other.outputs[FEATURES]
    return measured


def _windowed(measured: Measured, window: tuple[float, float] | None) -> Measured:
    if window is None:
        return measured
    likelihoods = measured.clips.log_likelihoods
    if not np.isfinite(likelihoods).all():
        raise UserError(
            f"--likelihood-window needs the log-likelihood of every clip of {measured.clips.root}: expected the "
            "samples.json that sashimi-sample writes for an autoregressive pipeline"
        )
    return measured.chosen(likelihood_window(likelihoods, *window))


def _score(
    measured: Measured, reference: Measured, usual: np.ndarray | None, settings: Settings, real: bool = False
) -> Scored:
    """The figures of a set; ``usual`` is how far held-out recordings are from the reference, (m,), if there are any."""
    features, probabilities = measured.outputs[FEATURES], measured.outputs[PROBABILITIES]
    labelled, resampling = measured.clips.labelled, settings.resampling
    neighbours = nearest_neighbours(features, reference.outputs[FEATURES])
    if settings.protocol == "sashimi-icml22":
        figures = official_figures(reference, measured)
    else:
        figures = [
            *distance_figures(reference.outputs[FEATURES], features, resampling),
            *classifier_figures(reference.outputs[PROBABILITIES], probabilities, resampling),
            *(label_figures(probabilities, measured.clips.labels, resampling) if labelled else []),
            *memorization_figures(neighbours[1], usual, resampling),
            *signal_figures(measured.facts, resampling),
            *likelihood_figures(measured.clips.bits_per_sample, resampling),
        ]
    return Scored(
        measured=measured,
        figures=figures,
        histogram=class_histogram(probabilities),
        accuracy=label_accuracy(probabilities, measured.clips.labels) if labelled else None,
        neighbours=neighbours,
        notes=_notes(measured, reference, settings),
        real=real,
    )


def _notes(measured: Measured, reference: Measured, settings: Settings) -> list[str]:
    """What was done to the clips of a set before they were heard, and what makes its figures doubtful."""
    return [*_handling(measured), *_overlap(measured, reference), *_chosen(measured, settings)]


def _handling(measured: Measured) -> list[str]:
    notes, facts, count = [], measured.facts, len(measured)
    rates = Counter(int(rate) for rate in facts["rate"])
    if set(rates) != {16000}:
        listing = ", ".join(f"{number} of {count} at {rate} Hz" for rate, number in sorted(rates.items()))
        notes.append(f"resampled to 16000 Hz: {listing}")
    mixed = int((facts["channels"] > 1).sum())
    if mixed:
        notes.append(f"mean of the channels: {mixed} of {count} clips have more than one")
    cut = int((facts["seconds"] > 1).sum())
    if cut:
        notes.append(f"only the first second is heard: {cut} of {count} clips are longer")
    return notes


def _overlap(measured: Measured, reference: Measured) -> list[str]:
    known = set(reference.fingerprints)
    same = sum(text in known for text in measured.fingerprints)
    if not same:
        return []
    return [
        f"{same} of {len(measured)} clips are files of the reference too: distances and neighbours flatter this set. "
        "Give recordings that the samples were not taken from"
    ]


def _chosen(measured: Measured, settings: Settings) -> list[str]:
    if settings.window is None:
        return []
    low, high = settings.window
    return [f"likelihood window: the {low:.0%} least and the {high:.0%} most likely clips are left out"]
