"""The classifier of the SC09 protocol, a ResNeXt on mel spectrograms."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from sashimi_diffusion.arguments import Range, check_arguments
from sashimi_diffusion.models.base import MAX_PARAMETERS
from sashimi_evaluation.classifiers.mel import ProtocolMel
from sashimi_evaluation.classifiers.word_classifier import ClassifierNetwork, ClassifierOutput, check_class_names


class Bottleneck(nn.Module):
    """Residual block: 1x1 convolution, grouped convolution, 1x1 convolution (arXiv 1611.05431, figure 3c).

    Args:
        in_channels: channels of the input.
        inner_channels: channels of the grouped convolution.
        out_channels: channels of the output.
        groups: groups of the grouped convolution.
        stride: stride of the grouped convolution.
    """

    def __init__(self, in_channels: int, inner_channels: int, out_channels: int, groups: int, stride: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(in_channels, inner_channels, 1, bias=False)
        self.reduce_norm = nn.BatchNorm2d(inner_channels)
        self.grouped = nn.Conv2d(inner_channels, inner_channels, 3, stride, padding=1, groups=groups, bias=False)
        self.grouped_norm = nn.BatchNorm2d(inner_channels)
        self.expand = nn.Conv2d(inner_channels, out_channels, 1, bias=False)
        self.expand_norm = nn.BatchNorm2d(out_channels)
        if in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.shortcut_norm = nn.BatchNorm2d(out_channels)

    def forward(self, inputs: Tensor) -> Tensor:
        """Map (B, in_channels, bands, frames) to (B, out_channels, bands / stride, frames / stride)."""
        hidden = F.relu(self.reduce_norm(self.reduce(inputs)))
        hidden = F.relu(self.grouped_norm(self.grouped(hidden)))
        hidden = self.expand_norm(self.expand(hidden))
        residual = self.shortcut_norm(self.shortcut(inputs)) if hasattr(self, "shortcut") else inputs
        return F.relu(residual + hidden)


def _parameters_of_blocks(cardinality: int, base_width: int, widen_factor: int) -> int:
    """Return about how many parameters one block of each stage has."""
    widths = [(64 * widen_factor * scale, cardinality * base_width * scale) for scale in (1, 2, 4)]
    return sum(2 * outer * inner + 9 * inner**2 // cardinality for outer, inner in widths)


class ResNeXtClassifier(ClassifierNetwork):
    """ResNeXt-29, 8x64d (arXiv 1611.05431), on 32 x 32 mel spectrograms: the classifier of the published SC09 results.

    With the default arguments it has 34,425,546 parameters. Its features are the 1,024 inputs of the last layer.

    Args:
        num_classes: number of classes.
        depth: number of layers, 9 k + 2 for k bottlenecks per stage.
        cardinality: groups of a bottleneck.
        base_width: channels of a group in the first stage.
        widen_factor: the stages have 64, 128 and 256 times as many output channels.
        class_names: names of the classes, in order; None: the ten digits.

    Raises:
        ValueError: a value of another type or out of its range, ``depth`` is not 9 k + 2 with k of at least 1, the
            names are not as many as the classes, or more parameters than a network may have.
    """

    ranges: ClassVar[Mapping[str, Range]] = {
        "num_classes": Range(1, 4096),
        "depth": Range(11, 1001),
        "cardinality": Range(1, 256),
        "base_width": Range(1, 1024),
        "widen_factor": Range(1, 64),
        "class_names": Range(0, 0, items=4096),
    }

    @register_to_config
    def __init__(
        self,
        num_classes: int = 10,
        depth: int = 29,
        cardinality: int = 8,
        base_width: int = 64,
        widen_factor: int = 4,
        class_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        check_arguments(type(self).__init__, self.config, self.ranges)
        check_class_names(self.config)
        blocks, rest = divmod(depth - 2, 9)
        if rest or blocks < 1:
            raise ValueError(f"depth is {depth}: it must be 9 k + 2, such as 11, 20 or 29")
        numbers = blocks * _parameters_of_blocks(cardinality, base_width, widen_factor)
        if numbers > MAX_PARAMETERS:
            raise ValueError(f"the network would have about {numbers:.1e} parameters: choose smaller sizes")
        self.mel = ProtocolMel()
        self.stem = nn.Conv2d(1, 64, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(64)
        self.stages = nn.ModuleList()
        channels = 64
        for scale in (1, 2, 4):
            out_channels, inner_channels = 64 * widen_factor * scale, cardinality * base_width * scale
            stage = nn.Sequential()
            for block in range(blocks):
                stride = 2 if block == 0 and scale > 1 else 1
                stage.append(Bottleneck(channels, inner_channels, out_channels, cardinality, stride))
                channels = out_channels
            self.stages.append(stage)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, waveform: Tensor) -> ClassifierOutput:
        """Classify waveforms (B, 1, 16000) at 16 kHz."""
        return self.from_mel(self.mel(waveform))

    def from_mel(self, mel: Tensor) -> ClassifierOutput:
        """Classify mel spectrograms (B, 1, 32, 32) in dB, the outputs of :class:`.ProtocolMel`."""
        hidden = F.relu(self.stem_norm(self.stem(mel)))
        for stage in self.stages:
            hidden = stage(hidden)
        features = hidden.mean(dim=(2, 3))
        return ClassifierOutput(features=features, logits=self.classifier(features))
