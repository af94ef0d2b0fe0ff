"""A word classifier that is fast on a CPU: a small head on speech embeddings."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from sashimi_diffusion.arguments import Range, check_arguments
from sashimi_evaluation.classifiers.mel import RelativeMel
from sashimi_evaluation.classifiers.speech_embedding import WINDOW, SpeechEmbedding
from sashimi_evaluation.classifiers.word_classifier import ClassifierNetwork, ClassifierOutput, check_class_names


class SmallClassifier(ClassifierNetwork):
    """A convolutional head on one speech embedding per 80 ms. Its outputs do not depend on the level of the audio.

    With the default arguments it has 358,090 parameters, 328,224 of them in the embedding. Its features are the mean
    and the maximum over time of the normalized embeddings, 192 numbers. They describe speech in general, not only the
    differences between a few words, so the features of noise are far from those of all words.

    Args:
        num_classes: number of classes.
        channels: channels of the :class:`.SpeechEmbedding`, four numbers.
        dropout: dropout rate of the embeddings and of the input of the last layer.
        class_names: names of the classes, in order; None: the ten digits.

    Raises:
        ValueError: a value of another type or out of its range, ``channels`` has not four numbers, ``dropout`` is not
            in [0, 1), or the names are not as many as the classes.
    """

    ranges: ClassVar[Mapping[str, Range]] = {
        "num_classes": Range(1, 4096),
        "channels": Range(1, 4096),
        "dropout": Range(0.0, 1.0),
        "class_names": Range(0, 0, items=4096),
    }

    @register_to_config
    def __init__(
        self,
        num_classes: int = 10,
        channels: Sequence[int] = (24, 48, 72, 96),
        dropout: float = 0.3,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        check_arguments(type(self).__init__, self.config, self.ranges)
        check_class_names(self.config)
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout is {dropout}: it must be at least 0 and below 1")
        self.mel = RelativeMel()
        self.embedding = SpeechEmbedding(channels)
        width = channels[-1]
        self.norm = nn.BatchNorm1d(width)
        self.head = nn.Conv1d(width, width, 3, padding=1)
        self.classifier = nn.Linear(2 * width, num_classes)

    @classmethod
    def on(cls, embedding: SpeechEmbedding, **arguments: Any) -> "SmallClassifier":
        """Return a classifier with an untrained head on a frozen copy of ``embedding``.

        Args:
            embedding: a trained speech embedding.
            arguments: arguments of the constructor except ``channels``.
        """
        classifier = cls(channels=embedding.config.channels, **arguments)
        classifier.embedding.load_state_dict(embedding.state_dict())
        classifier.embedding.requires_grad_(False)
        return classifier

    def forward(self, waveform: Tensor) -> ClassifierOutput:
        """Classify waveforms (B, 1, L) at 16 kHz."""
        embeddings = self.norm(padded_embeddings(self.mel, self.embedding, waveform))  # (B, C, frames)
        hidden = F.relu(self.head(self._dropout(embeddings)))
        logits = self.classifier(self._dropout(mean_and_maximum(hidden)))
        return ClassifierOutput(features=mean_and_maximum(embeddings), logits=logits)

    def _dropout(self, inputs: Tensor) -> Tensor:
        return F.dropout(inputs, self.config.dropout, self.training)


def padded_embeddings(mel: RelativeMel, embedding: Any, waveform: Tensor) -> Tensor:
    """Return one embedding per 80 ms of waveforms (B, 1, L) at 16 kHz, (B, C, frames), of a speech embedding."""
    # Without padding, the beginning and the end of the clip would never be in the middle of a window.
    levels = F.pad(mel(waveform), (WINDOW // 2, WINDOW // 2), value=mel.floor)
    return embedding(levels)


def mean_and_maximum(channels: Tensor) -> Tensor:
    """Pool over time, (B, C, frames) to (B, 2 C)."""
    # The mean alone would depend on the duration of the silence around a word.
    return torch.cat([channels.mean(dim=-1), channels.amax(dim=-1)], dim=1)
