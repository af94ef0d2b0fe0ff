"""Classifiers of spoken digits: their class probabilities, and the features for distances between sets of clips."""

from sashimi_evaluation.classifiers.digit_classifier import ClassifierOutput, DigitClassifier
from sashimi_evaluation.classifiers.loading import load_classifier, load_speech_embedding
from sashimi_evaluation.classifiers.mel import ProtocolMel, RelativeMel
from sashimi_evaluation.classifiers.resnext import ResNeXtClassifier
from sashimi_evaluation.classifiers.small import SmallClassifier
from sashimi_evaluation.classifiers.speech_embedding import SpeechEmbedding
from sashimi_evaluation.metrics.label_accuracy import expected_calibration_error

__all__ = [
    "ClassifierOutput",
    "DigitClassifier",
    "ProtocolMel",
    "RelativeMel",
    "ResNeXtClassifier",
    "SmallClassifier",
    "SpeechEmbedding",
    "expected_calibration_error",
    "load_classifier",
    "load_speech_embedding",
]
