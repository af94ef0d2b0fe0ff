"""Feature extractors: networks that replace the classifier as the source of features for the metrics."""

from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import nn

_BATCH = 8  # waveforms per call of a network; ten seconds of Cnn14 take 100 MB each


@runtime_checkable
class FeatureExtractor(Protocol):
    """A network that maps audio to feature vectors, for example one of your own with local weights.

    Attributes:
        name: name in reports.
        sample_rate: sample rate of the input in Hz.
        fingerprint: text that changes if the features of the same audio change, for example a hash of the weights.

    It may also have an attribute ``seconds``: the duration of the beginning of a file that it gets if files are not cut
    into excerpts. The default is 1.
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


class NamedExtractor:
    """A feature extractor that ``--features`` knows by name: a network that maps waveforms (B, L) to features (B, D).

    Args:
        network: the network; it is set to evaluation mode.
        name: name in reports.
        sample_rate: sample rate of its input in Hz.
        seconds: duration of the beginning of a file that it gets if files are not cut into excerpts.
        fingerprint: hash of the weights and of the settings.
        device: device of the network.
    """

    def __init__(
        self,
        network: nn.Module,
        name: str,
        sample_rate: int,
        seconds: float,
        fingerprint: str,
        device: str | torch.device = "cpu",
    ) -> None:
        self.network = network.eval().requires_grad_(False).to(device)
        self.name, self.sample_rate, self.seconds, self.fingerprint = name, sample_rate, seconds, fingerprint
        self._device = device

    @torch.inference_mode()
    def features(self, audio: np.ndarray, rate: int) -> np.ndarray:
        """Return the features, float32 (B, D), of waveforms, float32 (B, L), at ``sample_rate``."""
        waveforms = torch.from_numpy(audio)
        parts = [self.network(part.to(self._device)).float().cpu() for part in waveforms.split(_BATCH)]
        return torch.cat(parts).numpy()


def seconds_of(extractor: FeatureExtractor) -> float:
    """Return the duration of the beginning of a file that an extractor gets if files are not cut into excerpts."""
    return float(getattr(extractor, "seconds", 1.0))


def is_named(extractor: FeatureExtractor | None) -> bool:
    """Return whether an extractor is one of those that ``--features`` knows by name."""
    return isinstance(extractor, NamedExtractor)
