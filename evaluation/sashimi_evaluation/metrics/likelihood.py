"""Likelihoods of autoregressive samples: bits per sample, and the protocol that leaves clips out by likelihood."""

import math

import numpy as np
from numpy.typing import ArrayLike

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.generation.likelihood import require_log_likelihoods


def bits_per_sample(log_likelihoods: ArrayLike, lengths: ArrayLike) -> float:
    """Negative log-likelihood of one audio sample in bits (NLL in the tables of WaveNet and SaShiMi, base 2).

    Args:
        log_likelihoods: natural logarithms of the probability of whole clips, shape (clips,).
        lengths: audio samples in each clip, shape (clips,), or one number for all; long clips weigh more.

    Raises:
        UserError: likelihoods that are not finite, not of this shape or absent, or lengths that do not fit or are
            below 1.
    """
    logs = require_log_likelihoods(log_likelihoods)
    samples = np.asarray(lengths, dtype=np.float64)
    if samples.shape not in ((), logs.shape) or not (samples >= 1).all():
        raise UserError(f"lengths must be at least 1, one for all clips or one for each of {len(logs)}")
    return float(-logs.sum() / np.broadcast_to(samples, logs.shape).sum() / math.log(2))
