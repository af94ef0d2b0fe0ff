"""Feature extractors: the interface of a network whose features replace those of the classifier in the distances."""

import importlib
from typing import Protocol, runtime_checkable

import numpy as np

from sashimi_diffusion.errors import UserError


@runtime_checkable
class FeatureExtractor(Protocol):
    """A network that maps audio to vectors, for example VGGish, CLAP or PANNs with local weights.

    Attributes:
        name: its name in reports.
        sample_rate: of its input, in Hz.
        fingerprint: changes whenever the features of the same audio change, for example a hash of the weights.
    """

    name: str
    sample_rate: int
    fingerprint: str

    def features(self, audio: np.ndarray, rate: int) -> np.ndarray:
        """Return vectors (B, D) of waveforms (B, L), float32, at ``rate`` Hz, which is ``sample_rate``."""


def load_extractor(place: str) -> FeatureExtractor:
    """Load the extractor that a function returns.

    Args:
        place: ``package.module:function``; the module must be importable, the function takes no arguments.

    Raises:
        UserError: there is no such module or function, or it does not return a :class:`FeatureExtractor`.
    """
    module_name, _, function_name = place.partition(":")
    if not module_name or not function_name:
        raise UserError(f"--features {place}: expected package.module:function, a function that returns the extractor")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"--features {place}: {error}. The module must be importable (PYTHONPATH) and contain that function"
        ) from error
    extractor = function()
    if not isinstance(extractor, FeatureExtractor):
        raise UserError(
            f"--features {place} returned {type(extractor).__name__}, which lacks one of name, sample_rate, "
            "fingerprint and features(audio, rate): see sashimi_evaluation.FeatureExtractor"
        )
    return extractor
