"""What a classifier answers."""

from dataclasses import dataclass

from diffusers.utils import BaseOutput
from torch import Tensor


@dataclass
class ClassifierOutput(BaseOutput):
    """What a classifier makes of waveforms.

    Args:
        features: shape (B, D), what the last linear layer is given.
        logits: shape (B, classes).
    """

    features: Tensor
    logits: Tensor
