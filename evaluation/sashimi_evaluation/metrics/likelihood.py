"""Bits per sample: the likelihood of clips under an autoregressive model."""

import math

import numpy as np
from numpy.typing import ArrayLike

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.generation.likelihood import require_log_likelihoods
from sashimi_evaluation.metrics.intervals import Resampling
from sashimi_evaluation.metrics.metric import Metric, mean_metric


def bits_per_sample(log_likelihoods: ArrayLike, lengths: ArrayLike) -> float:
    """Return the mean negative log-likelihood per audio sample in bits (NLL in the WaveNet and SaShiMi tables).

    Args:
        log_likelihoods: log-likelihoods of whole clips in nats, shape (clips,).
        lengths: number of audio samples of each clip, shape (clips,), or one number for all clips. Longer clips have
            more weight in the mean.

    Raises:
        UserError: the likelihoods are empty, not finite or of another shape, or the lengths have another shape or are
            less than 1.
    """
    logs = require_log_likelihoods(log_likelihoods)
    samples = np.asarray(lengths, dtype=np.float64)
    if samples.shape not in ((), logs.shape) or not (samples >= 1).all():
        raise UserError(f"lengths must be at least 1 sample: expected one for all clips or one for each of {len(logs)}")
    return float(-logs.sum() / np.broadcast_to(samples, logs.shape).sum() / math.log(2))


def likelihood_metrics(bits: np.ndarray, resampling: Resampling) -> list[Metric]:
    """Return the bits per sample of clips under the model that generated them.

    Args:
        bits: bits per sample of each clip, shape (clips,); NaN where unknown. With a NaN the result is empty.
        resampling: settings of the confidence interval.
    """
    if not np.isfinite(bits).all():
        return []
    return [mean_metric("bits_per_sample", "Bits per sample (generating model)", bits, resampling)]
