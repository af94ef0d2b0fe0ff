"""The likelihood of recordings under an autoregressive model, which is a product of probabilities."""

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sashimi_diffusion.data.quantization import bits_of
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.likelihood.dequantization import Quantization
from sashimi_diffusion.likelihood.estimate import BitsPerSample, checked_audio
from sashimi_diffusion.pipelines.autoregressive import SashimiAutoregressivePipeline
from sashimi_diffusion.ssm import frozen

CHUNK = 16_384
"""Samples of a recording in one forward pass."""


def quantization_of(pipe: SashimiAutoregressivePipeline) -> Quantization:
    """Return the quantization of an autoregressive model."""
    config = pipe.model.config
    return Quantization(config.quantization, bits_of(config.num_tokens))


@torch.no_grad()
def token_bits_per_sample(pipe: SashimiAutoregressivePipeline, audio: np.ndarray | Tensor) -> BitsPerSample:
    """Return the bits per sample of recordings under an autoregressive model; nothing is estimated.

    Args:
        pipe: the pipeline.
        audio: recordings at the sample rate of the model, (L,), (B, L) or (B, 1, L). Each is scaled from its extremes
            to the range of the quantization, as in training.

    Raises:
        UserError: the shape does not fit, or a recording is constant and cannot be scaled.
    """
    model = pipe.model
    waveform = checked_audio(audio, 1, 1).squeeze(1)
    if (waveform.amax(dim=-1) == waveform.amin(dim=-1)).any():
        raise UserError("a recording has the same value throughout: it cannot be scaled to the range of the tokens")
    tokens = pipe.prefix_tokens(waveform)  # (B, L)
    nats = torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device)
    state = None
    with frozen(model):
        chunks = zip(model.inputs(tokens).split(CHUNK, dim=1), tokens.split(CHUNK, dim=1), strict=True)
        for inputs, targets in chunks:
            logits, state = model.prefill(inputs, state)
            nats += F.cross_entropy(logits.float(), targets, reduction="none").double().sum(dim=1)
    bits = nats.cpu() / (tokens.shape[1] * math.log(2))
    return BitsPerSample(bits, torch.zeros_like(bits), 1)
