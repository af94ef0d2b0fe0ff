"""Classifiers of spoken words: their class probabilities, and the features for distances between sets of clips."""

from sashimi_evaluation.classifiers.loading import load_classifier, load_speech_embedding
from sashimi_evaluation.classifiers.mel import ProtocolMel, RelativeMel
from sashimi_evaluation.classifiers.resnext import ResNeXtClassifier
from sashimi_evaluation.classifiers.small import SmallClassifier
from sashimi_evaluation.classifiers.speech_embedding import SpeechEmbedding
from sashimi_evaluation.classifiers.word_classifier import ClassifierOutput, WordClassifier
from sashimi_evaluation.metrics.label_accuracy import expected_calibration_error

DigitClassifier = WordClassifier
"""The name of the class in earlier versions, which had no other words."""

__all__ = [
    "ClassifierOutput",
    "DigitClassifier",
    "ProtocolMel",
    "RelativeMel",
    "ResNeXtClassifier",
    "SmallClassifier",
    "SpeechEmbedding",
    "WordClassifier",
    "expected_calibration_error",
    "load_classifier",
    "load_speech_embedding",
]
