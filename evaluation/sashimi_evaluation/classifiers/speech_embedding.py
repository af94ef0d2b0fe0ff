"""Speech embedding: a network that maps 0.76 seconds of speech to 96 numbers."""

from collections.abc import Sequence

import torch
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from sashimi_diffusion.arguments import Range, check_arguments
from sashimi_evaluation.classifiers.stored import EvaluationNetwork

WINDOW = 76
"""Receptive field of one embedding in frames of 10 ms. The window of the next embedding starts 8 frames later."""


class BoundedLeakyReLU(nn.Module):
    """Leaky ReLU with slope 0.2 for negative inputs and a lower bound of -0.4."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Apply the activation to a tensor of any shape."""
        return F.leaky_relu(inputs, 0.2).clamp(min=-0.4)


class SpeechEmbedding(EvaluationNetwork):
    """The embedding network of Lin et al. 2020 (arXiv 2002.01322, section 3).

    It consists of alternating convolutions over mel bands and over frames, and has 328,224 parameters with the default
    ``channels``. This package contains the weights that Google trained to distinguish 5,000 words
    (``pretrained/speech-embedding``).

    Args:
        channels: channels of the layers, four numbers from the first to the last layer; the last is the size of an
            embedding.

    Raises:
        ValueError: ``channels`` does not have four numbers, or one is out of its range.
    """

    @register_to_config
    def __init__(self, channels: Sequence[int] = (24, 48, 72, 96)) -> None:
        super().__init__()
        check_arguments(type(self).__init__, self.config, {"channels": Range(1, 4096)})
        if len(channels) != 4:
            raise ValueError(f"expected four numbers of channels, got {list(channels)}")
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
            if isinstance(layer, nn.Conv2d) and layer.bias is not None:
                # With PyTorch's default initialization the outputs hardly depend on the inputs after twenty layers
                # (arXiv 1502.01852).
                nn.init.kaiming_normal_(layer.weight, a=0.2)
                nn.init.zeros_(layer.bias)

    def forward(self, levels: Tensor) -> Tensor:
        """Map the levels of 32 mel bands (B, 1, 32, frames) to embeddings (B, channels[-1], 1 + (frames - 76) // 8).

        The bands are those of :class:`.RelativeMel`. The network was trained on levels of 16-bit audio samples: the
        power in dB divided by 10, plus 2. :class:`.RelativeMel` shifts each clip to the levels of loud
        speech on that scale.
        """
        # On a CPU this memory format is twice as fast.
        hidden = self.stem(levels).contiguous(memory_format=torch.channels_last)
        return self.layers(hidden)[:, :, 0]


def _across_bands_and_frames(in_channels: int, out_channels: int) -> list[nn.Module]:
    # No padding over frames: an embedding depends only on the content of its window, not on its position.
    return [
        nn.Conv2d(in_channels, out_channels, (3, 1), padding=(1, 0)),
        BoundedLeakyReLU(),
        nn.Conv2d(out_channels, out_channels, (1, 3)),
        BoundedLeakyReLU(),
    ]
