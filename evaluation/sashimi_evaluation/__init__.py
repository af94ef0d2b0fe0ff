"""Scores of generated audio: the SC09 metrics, classifiers, reports and listening tests, for clips of any system."""

from sashimi_evaluation.bins import ndb
from sashimi_evaluation.classifiers import DigitClassifier, load_classifier
from sashimi_evaluation.clips import ClipFolder, open_clips
from sashimi_evaluation.distances import nearest_neighbours
from sashimi_evaluation.evaluation import Settings, evaluate, hear
from sashimi_evaluation.extractors import FeatureExtractor
from sashimi_evaluation.frechet import frechet_distance, frechet_extrapolation
from sashimi_evaluation.intervals import Interval, bootstrap
from sashimi_evaluation.kernel import kernel_distance
from sashimi_evaluation.labels import class_histogram, label_accuracy
from sashimi_evaluation.likelihood import bits_per_sample, likelihood_window
from sashimi_evaluation.manifold import memorization, precision_recall_density_coverage
from sashimi_evaluation.scores import (
    am_score,
    inception_score,
    log_modified_classifier_score,
    modified_classifier_score,
)

mis = modified_classifier_score
"""The name the audio generation papers use for the modified classifier score (mCS)."""

__all__ = [
    "ClipFolder",
    "DigitClassifier",
    "FeatureExtractor",
    "Interval",
    "Settings",
    "am_score",
    "bits_per_sample",
    "bootstrap",
    "class_histogram",
    "evaluate",
    "frechet_distance",
    "frechet_extrapolation",
    "hear",
    "inception_score",
    "kernel_distance",
    "label_accuracy",
    "likelihood_window",
    "load_classifier",
    "log_modified_classifier_score",
    "memorization",
    "mis",
    "modified_classifier_score",
    "ndb",
    "nearest_neighbours",
    "open_clips",
    "precision_recall_density_coverage",
]
