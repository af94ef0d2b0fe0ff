"""Evaluation of generated audio of any system: the SC09 metrics, classifiers, reports and listening tests."""

from sashimi_diffusion.generation.likelihood import likelihood_window
from sashimi_evaluation.classifiers import DigitClassifier, WordClassifier, load_classifier
from sashimi_evaluation.clips import ClipFolder, open_clips
from sashimi_evaluation.evaluation import evaluate
from sashimi_evaluation.excerpts import Windows
from sashimi_evaluation.extraction import Settings, extract_features
from sashimi_evaluation.extractors import FeatureExtractor, load_extractor
from sashimi_evaluation.metrics.cepstral_distortion import mel_cepstral_distortion
from sashimi_evaluation.metrics.distances import nearest_neighbors
from sashimi_evaluation.metrics.frechet import frechet_distance, frechet_extrapolation
from sashimi_evaluation.metrics.inception import (
    am_score,
    inception_score,
    log_modified_classifier_score,
    modified_classifier_score,
)
from sashimi_evaluation.metrics.intervals import Interval, bootstrap
from sashimi_evaluation.metrics.kid import kernel_distance
from sashimi_evaluation.metrics.label_accuracy import class_histogram, label_accuracy
from sashimi_evaluation.metrics.likelihood import bits_per_sample
from sashimi_evaluation.metrics.memorization import memorization
from sashimi_evaluation.metrics.ndb import ndb
from sashimi_evaluation.metrics.pitch_error import pitch_error
from sashimi_evaluation.metrics.precision_recall import precision_recall_density_coverage
from sashimi_evaluation.metrics.stft_distance import stft_distance

mis = modified_classifier_score
"""Name of the modified classifier score (mCS) in the papers on audio generation."""

__all__ = [
    "ClipFolder",
    "DigitClassifier",
    "FeatureExtractor",
    "Interval",
    "Settings",
    "Windows",
    "WordClassifier",
    "am_score",
    "bits_per_sample",
    "bootstrap",
    "class_histogram",
    "evaluate",
    "extract_features",
    "frechet_distance",
    "frechet_extrapolation",
    "inception_score",
    "kernel_distance",
    "label_accuracy",
    "likelihood_window",
    "load_classifier",
    "load_extractor",
    "log_modified_classifier_score",
    "mel_cepstral_distortion",
    "memorization",
    "mis",
    "modified_classifier_score",
    "ndb",
    "nearest_neighbors",
    "open_clips",
    "pitch_error",
    "precision_recall_density_coverage",
    "stft_distance",
]
