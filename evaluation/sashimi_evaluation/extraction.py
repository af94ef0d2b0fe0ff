"""The features and class probabilities of all sets of an evaluation, and the settings of an evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.generation.likelihood import likelihood_window
from sashimi_diffusion.terminal import one_line, printable
from sashimi_evaluation.classifiers import WordClassifier
from sashimi_evaluation.clips import ClipFolder
from sashimi_evaluation.excerpts import Windows
from sashimi_evaluation.extractors import FeatureExtractor, seconds_of
from sashimi_evaluation.feature_extraction import (
    FEATURES,
    PROBABILITIES,
    ClipFeatures,
    ClipNetwork,
    extract_clip_features,
)
from sashimi_evaluation.metrics.arrays import check_same_width, feature_matrix, probability_matrix
from sashimi_evaluation.metrics.intervals import Resampling
from sashimi_evaluation.metrics.spectrum import LINES

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
        windows: how recordings are cut into excerpts; None: each file is one clip, with its beginning.
    """

    protocol: str = "default"
    resampling: Resampling = field(default_factory=Resampling)
    window: tuple[float, float] | None = None
    cache_dir: Path | None = None
    skip_bad_files: bool = False
    lines: tuple[float, ...] = LINES
    windows: Windows | None = None


@dataclass(frozen=True)
class Extraction:
    """The features of all clips, and the networks that computed them.

    ``outputs`` of every set has the validated float64 arrays ``FEATURES`` (n, d) and, with a classifier,
    ``PROBABILITIES`` (n, classes).

    Args:
        sets: the clips to evaluate.
        reference: real clips that the sets are compared with; the papers use the training set.
        held_out: real clips outside of the reference, or None. They are evaluated like a set. Their distances to the
            reference are the baseline of the memorization metrics.
        classifier: the classifier that computed the probabilities, and the features if there is no ``extractor``; None:
            there are no classes.
        extractor: the network that computed the features, or None.
        settings: see :class:`Settings`.
        notes: remarks on the whole evaluation, for reports.
    """

    sets: list[ClipFeatures]
    reference: ClipFeatures
    held_out: ClipFeatures | None
    classifier: WordClassifier | None
    extractor: FeatureExtractor | None
    settings: Settings
    notes: tuple[str, ...] = ()

    @property
    def class_names(self) -> list[str]:
        """The names of the classes; empty without a classifier."""
        return [] if self.classifier is None else self.classifier.class_names

    @property
    def feature_network(self) -> WordClassifier | FeatureExtractor:
        """The network that computed the features."""
        network = self.classifier if self.extractor is None else self.extractor
        assert network is not None  # `extract_features` refuses it
        return network


def extract_features(
    sets: Sequence[ClipFolder],
    reference: ClipFolder,
    held_out: ClipFolder | None,
    classifier: WordClassifier | None,
    extractor: FeatureExtractor | None = None,
    settings: Settings | None = None,
    notes: Sequence[str] = (),
) -> Extraction:
    """Extract the features of all clips.

    With ``accelerate launch`` the processes divide the work, and each process returns all results.

    Args:
        sets: the clips to evaluate.
        reference: real clips that the sets are compared with.
        held_out: real clips outside of the reference, or None.
        classifier: network for the class probabilities, and for the features if there is no ``extractor``; None for
            clips without classes.
        extractor: network for the features, or None.
        settings: settings of the evaluation; default: ``Settings()``.
        notes: remarks on the whole evaluation, for reports.

    Raises:
        UserError: a file cannot be used, the outputs of a network are invalid, there is neither a classifier nor an
            extractor, the protocol needs a classifier, or there is a likelihood window but no likelihoods.
    """
    settings = settings or Settings()
    if classifier is None and extractor is None:
        raise UserError("an evaluation needs features: give a classifier, an extractor, or both")
    if classifier is None and settings.protocol != "default":
        raise UserError(
            f"the protocol {settings.protocol} has class metrics: choose a --classifier, or leave out --protocol"
        )
    if settings.window is not None:
        for clips in sets:
            _in_window(clips, settings.window)  # a set without likelihoods is refused before the work
    reference_features = _extract(reference, classifier, extractor, settings)
    held_out_features = None if held_out is None else _extract(held_out, classifier, extractor, settings)
    set_features = [_extract(clips, classifier, extractor, settings) for clips in sets]
    if settings.window is not None:
        set_features = [_selected(features, settings.window) for features in set_features]
    for other in [*set_features, *([] if held_out_features is None else [held_out_features])]:
        check_same_width(
            (reference_features.outputs[FEATURES], other.outputs[FEATURES]),
            ("the features of the reference", f"those of {other.clips.name}"),
            "the extractor must return the same number of features for all clips",
        )
    return Extraction(
        set_features, reference_features, held_out_features, classifier, extractor, settings, tuple(notes)
    )


def _extract(
    clips: ClipFolder, classifier: WordClassifier | None, extractor: FeatureExtractor | None, settings: Settings
) -> ClipFeatures:
    if classifier is None:
        assert extractor is not None  # checked by `extract_features`
        without = replace(clips, labels=np.full(len(clips), -1), class_names=(), label_notes=())
        extracted = _run_extractor(without, extractor, settings, music=True)
        return replace(extracted, outputs={FEATURES: _features_of(extracted)})
    extracted = _classify(clips.labeled_by(classifier.class_names), classifier, settings)
    by_features = extracted
    if extractor is not None:
        by_features = _run_extractor(extracted.whole(), extractor, settings)
        usable = set(by_features.clips.files)
        extracted = extracted.select(np.flatnonzero([file in usable for file in extracted.clips.files]))
    features, name = _features_of(by_features), f"the class probabilities of {clips.name}"
    probabilities = probability_matrix(extracted.outputs[PROBABILITIES], name)
    return replace(extracted, outputs={FEATURES: features, PROBABILITIES: probabilities})


def _features_of(extracted: ClipFeatures) -> np.ndarray:
    return feature_matrix(extracted.outputs[FEATURES], f"the features of {extracted.clips.name}")


def _classify(clips: ClipFolder, classifier: WordClassifier, settings: Settings) -> ClipFeatures:
    def compute(audio: np.ndarray) -> dict[str, np.ndarray]:
        features, probabilities = classifier.classify(audio, classifier.sample_rate)
        return {FEATURES: features, PROBABILITIES: probabilities}

    network = ClipNetwork(compute, classifier.fingerprint, classifier.sample_rate, classifier.seconds)
    return extract_clip_features(clips, network, settings.cache_dir, settings.skip_bad_files, settings.windows)


def _run_extractor(
    clips: ClipFolder, extractor: FeatureExtractor, settings: Settings, music: bool = False
) -> ClipFeatures:
    """Return the features of an extractor; ``music`` for clips without classes: in words there are no notes."""

    def compute(audio: np.ndarray) -> dict[str, np.ndarray]:
        try:
            features = np.asarray(extractor.features(audio, extractor.sample_rate), dtype=np.float64)
        except UserError:
            raise
        except Exception as error:  # of the user's code
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise UserError(f"the feature extractor {printable(extractor.name)} failed ({reason})") from error
        if features.ndim != 2 or len(features) != len(audio) or features.shape[1] == 0:
            raise UserError(
                f"the feature extractor {printable(extractor.name)} returned the shape {features.shape}: "
                f"expected one row of features for each of {len(audio)} clips"
            )
        return {FEATURES: features}

    seconds = seconds_of(extractor) if settings.windows is None else settings.windows.seconds
    network = ClipNetwork(compute, extractor.fingerprint, extractor.sample_rate, seconds)
    return extract_clip_features(clips, network, settings.cache_dir, settings.skip_bad_files, settings.windows, music)


def _selected(features: ClipFeatures, window: tuple[float, float]) -> ClipFeatures:
    """Return the features of the clips, or of the excerpts of the recordings, that the likelihood window keeps."""
    whole = features.whole()
    if features.recordings is None:
        return features.select(_in_window(whole, window))
    kept = {whole.files[index] for index in _in_window(whole, window)}
    return features.select(np.flatnonzero([file in kept for file in features.clips.files]))


def _in_window(clips: ClipFolder, window: tuple[float, float]) -> np.ndarray:
    """Return the indices of the clips that the likelihood window keeps."""
    if not np.isfinite(clips.log_likelihoods).all():
        raise UserError(
            f"--likelihood-window needs the log-likelihood of every clip of {printable(clips.root)}: expected the "
            "samples.json that sashimi-sample writes for an autoregressive pipeline"
        )
    return likelihood_window(clips.log_likelihoods, *window)
