"""A digit classifier for a CPU: a small head that listens to speech embeddings."""

from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from sashimi_evaluation.classifiers.mel import RelativeMel
from sashimi_evaluation.classifiers.output import ClassifierOutput
from sashimi_evaluation.classifiers.speech_embedding import WINDOW, SpeechEmbedding


class SmallClassifier(ModelMixin, ConfigMixin):
    """A speech embedding of every 80 ms, and what the embeddings of a word say; the level of the audio does not matter.

    With the default arguments it has 358,090 parameters, of which 328,224 are the embedding's. Its features are the
    mean and the maximum over time of the 96 numbers of the embeddings, each number normalized over the training: what
    is known of speech, not only what tells digits apart, so that noise is far from any word.

    Args:
        num_classes: digits.
        channels: of the :class:`.SpeechEmbedding`.
        dropout: share of the embeddings' and the features' numbers that are left out while training.

    Raises:
        ValueError: there are not four ``channels``, or ``dropout`` is no share.
    """

    @register_to_config
    def __init__(self, num_classes: int = 10, channels: Sequence[int] = (24, 48, 72, 96), dropout: float = 0.3) -> None:
        super().__init__()
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}: it must be at least 0 and below 1")
        self.mel = RelativeMel()
        self.embedding = SpeechEmbedding(channels)
        width = channels[-1]
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Conv1d(width, width, 3, padding=1)
        self.classifier = nn.Linear(2 * width, num_classes)

    @classmethod
    def on(cls, embedding: SpeechEmbedding, **arguments: int | float) -> "SmallClassifier":
        """An untrained head on a copy of ``embedding`` that will not be trained.

        Args:
            embedding: what is known of speech.
            arguments: of the constructor, but for the channels.
        """
        classifier = cls(channels=embedding.config.channels, **arguments)
        classifier.embedding.load_state_dict(embedding.state_dict())
        classifier.embedding.requires_grad_(False)
        return classifier

    def forward(self, waveform: Tensor) -> ClassifierOutput:
        """Hear waveforms (B, 1, L) at 16 kHz."""
        # Silence around the clip: the first and the last sound are heard in the middle of a window, too.
        levels = F.pad(self.mel(waveform), (WINDOW // 2, WINDOW // 2), value=self.mel.floor)
        embeddings = self.norm(self.embedding(levels))  # (B, C, frames)
        hidden = F.relu(self.head(self._drop_out(embeddings)))
        logits = self.classifier(self._drop_out(_mean_and_maximum(hidden)))
        return ClassifierOutput(features=_mean_and_maximum(embeddings), logits=logits)

    def _drop_out(self, numbers: Tensor) -> Tensor:
        return F.dropout(numbers, self.config.dropout, self.training)


def _mean_and_maximum(channels: Tensor) -> Tensor:
    # Over time, (B, C, frames) to (B, 2 C): the mean alone would weigh a short word by the silence around it.
    return torch.cat([channels.mean(dim=-1), channels.amax(dim=-1)], dim=1)
