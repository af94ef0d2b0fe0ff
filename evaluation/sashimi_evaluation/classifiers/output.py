"""What a classifier answers."""

from dataclasses import dataclass

from diffusers.utils import BaseOutput
from torch import Tensor


@dataclass
class ClassifierOutput(BaseOutput):
    """What a classifier makes of waveforms.

    Args:
        features: shape (B, D), what distances between sets of clips are measured in.
        logits: shape (B, classes).
    """

    features: Tensor
    logits: Tensor
