"""A network that knows speech from thousands of words, and says in 96 numbers what 0.76 seconds of it sound like."""

from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

WINDOW = 76
"""Frames of 10 ms that one embedding hears; the next begins 8 frames later."""


class BoundedLeakyReLU(nn.Module):
    """Negative numbers a fifth as large, but never below -0.4."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Any shape."""
        return F.leaky_relu(inputs, 0.2).clamp(min=-0.4)


class SpeechEmbedding(ModelMixin, ConfigMixin):
    """The embedding of Lin et al., "Training Keyword Spotters with Limited and Synthesized Speech Data".

    arXiv 2002.01322, section 3: convolutions across bands and across frames by turns, 328,224 parameters with the
    default ``channels``. Those that Google published, trained to tell 5,000 words apart, come with this package
    (``pretrained/speech-embedding``).

    Args:
        channels: of the four widths; the last is the size of an embedding.

    Raises:
        ValueError: there are not four.
    """

    @register_to_config
    def __init__(self, channels: Sequence[int] = (24, 48, 72, 96)) -> None:
        super().__init__()
        if len(channels) != 4:
            raise ValueError(f"channels is {list(channels)}: it must be four numbers")
        first, second, third, fourth = channels
        self.stem = nn.Sequential(nn.Conv2d(1, first, 3, padding=(1, 0)), BoundedLeakyReLU())
        self.layers = nn.Sequential(
            *_across_bands_and_frames(first, first),
            nn.MaxPool2d(2),
            *_across_bands_and_frames(first, second),
            *_across_bands_and_frames(second, second),
            nn.MaxPool2d((2, 1)),
            *_across_bands_and_frames(second, third),
            *_across_bands_and_frames(third, third),
            nn.MaxPool2d(2),
            *_across_bands_and_frames(third, fourth),
            *_across_bands_and_frames(fourth, fourth),
            nn.MaxPool2d((2, 1)),
            *_across_bands_and_frames(fourth, fourth),
            *_across_bands_and_frames(fourth, fourth),
            nn.MaxPool2d(2),
            nn.Conv2d(fourth, fourth, (1, 3)),
        )
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                # PyTorch's own start would make all inputs alike after twenty layers (arXiv 1502.01852).
                nn.init.kaiming_normal_(layer.weight, a=0.2)
                nn.init.zeros_(layer.bias)

    def forward(self, levels: Tensor) -> Tensor:
        """Levels of 32 mel bands (B, 1, 32, frames) as embeddings (B, channels[-1], 1 + (frames - 76) // 8).

        A level is 2 plus a tenth of the decibels of the power, for samples from -32,768 to 32,767; the bands are those
        of :class:`.RelativeMel`.
        """
        # Twice as fast on a CPU as with the frames innermost.
        hidden = self.stem(levels).contiguous(memory_format=torch.channels_last)
        return self.layers(hidden)[:, :, 0]


def _across_bands_and_frames(in_channels: int, out_channels: int) -> list[nn.Module]:
    # Frames are not filled up with zeros: an embedding depends on its own window and not on where that lies.
    return [
        nn.Conv2d(in_channels, out_channels, (3, 1), padding=(1, 0)),
        BoundedLeakyReLU(),
        nn.Conv2d(out_channels, out_channels, (1, 3)),
        BoundedLeakyReLU(),
    ]
