"""Interface of feature extractors: networks that replace the classifier as the source of features for the metrics."""

import importlib
from typing import Protocol, runtime_checkable

import numpy as np

from sashimi_diffusion.errors import UserError


@runtime_checkable
class FeatureExtractor(Protocol):
    """A network that maps audio to feature vectors, for example VGGish, CLAP or PANNs with local weights.

    Attributes:
        name: name in reports.
        sample_rate: sample rate of the input in Hz.
        fingerprint: text that changes if the features of the same audio change, for example a hash of the weights.
    """

    name: str
    sample_rate: int
    fingerprint: str

    def features(self, audio: np.ndarray, rate: int) -> np.ndarray:
        """Return the features of waveforms.

        Args:
            audio: waveforms, float32 (B, L).
            rate: sample rate of ``audio`` in Hz; always equal to ``sample_rate``.

        Returns:
            real numbers, shape (B, D) with the same D in every call.
        """


def load_extractor(location: str) -> FeatureExtractor:
    """Import a function, call it and return the feature extractor that it creates.

    Args:
        location: ``package.module:function``; the module must be importable, and the function takes no arguments.

    Raises:
        UserError: there is no such module or function, or it does not return a :class:`FeatureExtractor`.
    """
    module_name, _, function_name = location.partition(":")
    if not module_name or not function_name:
        raise UserError(
            f"--features {location}: expected package.module:function, a function that returns the extractor"
        )
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"--features {location}: {error}. The module must be importable (PYTHONPATH) and contain that function"
        ) from error
    extractor = function()
    if not isinstance(extractor, FeatureExtractor):
        raise UserError(
            f"--features {location} returned {type(extractor).__name__}, which lacks one of name, sample_rate, "
            "fingerprint and features(audio, rate): see sashimi_evaluation.FeatureExtractor"
        )
    return extractor
