"""A digit classifier for a CPU: a small residual network on mels of telephone bandwidth."""

from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from sashimi_evaluation.classifiers.mel import RelativeMel
from sashimi_evaluation.classifiers.output import ClassifierOutput


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut (arXiv 1512.03385).

    Args:
        in_channels: of the input.
        out_channels: of the output.
        stride: of the first convolution, in frequency and time.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(out_channels)
        self.second = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
        self.shortcut_norm = nn.BatchNorm2d(out_channels)

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, in_channels, bands, frames) to (B, out_channels, bands / stride, frames / stride), rounded up."""
        hidden = F.relu(self.first_norm(self.first(inputs)))
        hidden = self.second_norm(self.second(hidden))
        return F.relu(self.shortcut_norm(self.shortcut(inputs)) + hidden)


class SmallClassifier(ModelMixin, ConfigMixin):
    """Residual network on 40 mel bands up to 3.8 kHz; the level of the audio makes no difference.

    With the default arguments it has 360,786 parameters and features of 192 dimensions: the mean and the maximum over
    time of 96 channels. The mean alone would weigh a short word by the silence around it.

    Args:
        num_classes: digits.
        bands: of the mel; a multiple of 8.
        channels: of the stem and the three blocks.

    Raises:
        ValueError: ``bands`` is no multiple of 8, or there are not four ``channels``.
    """

    @register_to_config
    def __init__(self, num_classes: int = 10, bands: int = 40, channels: Sequence[int] = (24, 32, 64, 96)) -> None:
        super().__init__()
        if bands % 8 or bands < 8:
            raise ValueError(f"bands is {bands}: it must be a multiple of 8")
        if len(channels) != 4:
            raise ValueError(f"channels is {list(channels)}: it must be four numbers")
        stem, first, second, third = channels
        self.mel = RelativeMel(bands)
        self.stem = nn.Conv2d(1, stem, 5, stride=2, padding=2, bias=False)
        self.stem_norm = nn.BatchNorm2d(stem)
        self.blocks = nn.Sequential(
            ResidualBlock(stem, first, stride=2),
            ResidualBlock(first, second, stride=2),
            ResidualBlock(second, third, stride=1),
        )
        # All bands that are left at once: what a pattern means depends on where in frequency it is.
        self.head = nn.Conv2d(third, third, (bands // 8, 3), padding=(0, 1), bias=False)
        self.head_norm = nn.BatchNorm2d(third)
        self.classifier = nn.Linear(2 * third, num_classes)

    def forward(self, waveform: Tensor) -> ClassifierOutput:
        """Hear waveforms (B, 1, L) at 16 kHz."""
        hidden = F.relu(self.stem_norm(self.stem(self.mel(waveform))))
        hidden = F.relu(self.head_norm(self.head(self.blocks(hidden))))[:, :, 0]  # (B, C, frames)
        features = torch.cat([hidden.mean(dim=-1), hidden.amax(dim=-1)], dim=1)
        return ClassifierOutput(features=features, logits=self.classifier(features))
