"""What every denoiser returns."""

from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput


@dataclass
class DenoiserOutput(BaseOutput):
    """The network's prediction: the noise, or the velocity, as the scheduler's ``prediction_type`` says.

    Args:
        sample: prediction, shape (batch, channels, length).
    """

    sample: torch.Tensor
