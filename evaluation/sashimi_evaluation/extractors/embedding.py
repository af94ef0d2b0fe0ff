"""The bundled speech embedding as a feature extractor."""

import torch
from torch import Tensor, nn

from sashimi_evaluation.classifiers import RelativeMel, SpeechEmbedding, load_speech_embedding
from sashimi_evaluation.classifiers.mel import SAMPLE_RATE
from sashimi_evaluation.classifiers.small import mean_and_maximum, padded_embeddings
from sashimi_evaluation.extractors.interface import NamedExtractor
from sashimi_evaluation.extractors.weights import fingerprint_of

VERSION = 1  # increase it whenever the same weights give other features
SCALE = 0.2
"""Factor of the features: those of words then have a standard deviation of about 1. KID depends on their scale."""


class PooledEmbedding(nn.Module):
    """Mean and maximum over time of the speech embeddings of a waveform.

    There is one embedding per 80 ms; it describes the 0.76 s around it, and frequencies from 60 to 3800 Hz. The
    features do not depend on the level of a waveform.

    Args:
        embedding: the embedding of short windows.
    """

    def __init__(self, embedding: SpeechEmbedding) -> None:
        super().__init__()
        self.mel = RelativeMel()
        self.embedding = embedding

    def forward(self, waveform: Tensor) -> Tensor:
        """Map waveforms (B, L) at 16 kHz to features (B, 2 C), where C is the size of an embedding."""
        return SCALE * mean_and_maximum(padded_embeddings(self.mel, self.embedding, waveform[:, None]))


def load_embedding(device: str | torch.device = "cpu") -> NamedExtractor:
    """Return the bundled speech embedding as a feature extractor of 192 features.

    It was trained on speech, but the features of other sounds differ from those of noise, too. It hears nothing above
    3.8 kHz. Without excerpts it gets the first second of a file, and the silence after a shorter one counts.

    The features are those of the bundled classifiers with one factor instead of the normalization of each feature that
    was fitted to words.

    Args:
        device: device of the network.

    Raises:
        UserError: its files are damaged.
    """
    network = PooledEmbedding(load_speech_embedding())
    fingerprint = fingerprint_of(network.state_dict(), {"network": "embedding", "version": VERSION, "scale": SCALE})
    return NamedExtractor(network, "embedding", SAMPLE_RATE, 1.0, fingerprint, device)
