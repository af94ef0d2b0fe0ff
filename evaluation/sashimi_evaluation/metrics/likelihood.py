"""Bits per sample: the likelihood of clips under an autoregressive model."""

import math

import numpy as np
from numpy.typing import ArrayLike

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.generation.likelihood import require_log_likelihoods
from sashimi_evaluation.metrics.intervals import Resampling
from sashimi_evaluation.metrics.metric import Metric, mean_metric


def bits_per_sample(log_likelihoods: ArrayLike, lengths: ArrayLike) -> float:
    """Return the negative log-likelihood of one audio sample in bits (NLL in base 2 in the WaveNet and SaShiMi tables).

    Args:
        log_likelihoods: of whole clips in nats, shape (clips,).
        lengths: audio samples in each clip, shape (clips,), or one number for all; clips are weighted by length.

    Raises:
        UserError: the likelihoods are empty, not finite or of another shape, or the lengths have another shape or are
            less than 1.
    """
    logs = require_log_likelihoods(log_likelihoods)
    samples = np.asarray(lengths, dtype=np.float64)
    if samples.shape not in ((), logs.shape) or not (samples >= 1).all():
        raise UserError(f"lengths must be at least 1, one for all clips or one for each of {len(logs)}")
    return float(-logs.sum() / np.broadcast_to(samples, logs.shape).sum() / math.log(2))


def likelihood_metrics(bits: np.ndarray, resampling: Resampling) -> list[Metric]:
    """Return the bits per sample of clips under the model that generated them.

    Args:
        bits: of each clip, shape (clips,); NaN where unknown, then there is no metric.
        resampling: settings of the interval.
    """
    if not np.isfinite(bits).all():
        return []
    return [mean_metric("bits_per_sample", "Bits per sample under its own model", bits, resampling)]
