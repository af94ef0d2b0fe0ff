"""Select generated clips by their likelihood, as the SaShiMi paper does for its samples."""

import numpy as np
from numpy.typing import ArrayLike

from sashimi_diffusion.errors import UserError


def likelihood_window(log_likelihoods: ArrayLike, low: float = 0.4, high: float = 0.05) -> np.ndarray:
    """Return the indices of the clips that remain when the least likely and the most likely clips are removed.

    The defaults are those of SaShiMi (Goel et al. 2022, arXiv 2202.09729) for SC09 samples: the bottom 40 % and the top
    5 % are removed. Of n clips in ascending order, the clips from int(low n) up to but not including int((1 - high) n)
    remain.

    Args:
        log_likelihoods: of clips of equal length, shape (clips,).
        low: fraction of the clips to remove at the lower end.
        high: fraction of the clips to remove at the upper end.

    Returns:
        Indices in ascending order, int64 (remaining clips,).

    Raises:
        UserError: the likelihoods are invalid, the fractions are out of range, or no clip remains.
    """
    logs = require_log_likelihoods(log_likelihoods)
    if not (low >= 0 and high >= 0 and low + high < 1):
        raise UserError(f"the fractions removed must be at least 0 and below 1 together, got {low:g} and {high:g}")
    # The small number corrects rounding: in floating point 0.29 · 100 is below 29.
    start, stop = (int(fraction * len(logs) + 1e-9) for fraction in (low, 1 - high))
    if start >= stop:
        raise UserError(f"no clip of {len(logs)} is left between the lowest {low:g} and the highest {high:g}")
    return np.sort(np.argsort(logs, kind="stable")[start:stop])


def require_log_likelihoods(log_likelihoods: ArrayLike) -> np.ndarray:
    """Return log-likelihoods as float64 (clips,).

    Raises:
        UserError: a number is not finite, there are no numbers, or the shape is not (clips,).
    """
    logs = np.asarray(log_likelihoods, dtype=np.float64)
    if logs.ndim != 1 or len(logs) == 0 or not np.isfinite(logs).all():
        raise UserError(f"log-likelihoods must be finite numbers of shape (clips,), got the shape {logs.shape}")
    return logs
