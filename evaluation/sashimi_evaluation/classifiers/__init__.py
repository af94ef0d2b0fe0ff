"""Classifiers of spoken digits: what they hear, and the features that the distances are measured in."""

from sashimi_evaluation.classifiers.calibration import expected_calibration_error
from sashimi_evaluation.classifiers.digit_classifier import DigitClassifier
from sashimi_evaluation.classifiers.loading import load_classifier, load_speech_embedding
from sashimi_evaluation.classifiers.mel import ProtocolMel, RelativeMel
from sashimi_evaluation.classifiers.output import ClassifierOutput
from sashimi_evaluation.classifiers.resnext import ResNeXtClassifier
from sashimi_evaluation.classifiers.small import SmallClassifier
from sashimi_evaluation.classifiers.speech_embedding import SpeechEmbedding

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
