"""Select generated clips by their likelihood, as the SaShiMi paper does for its samples."""

import numpy as np
from numpy.typing import ArrayLike

from sashimi_diffusion.errors import UserError


def likelihood_window(log_likelihoods: ArrayLike, low: float = 0.4, high: float = 0.05) -> np.ndarray:
    """Clips that stay when the least likely and the most likely ones are left out.

    The defaults are what SaShiMi (Goel et al. 2022, arXiv 2202.09729) reports on SC09 samples: without the bottom 40 %
    and the top 5 %. Of n clips in ascending order those from int(low n) up to, not including, int((1 - high) n) stay.

    Args:
        log_likelihoods: of clips of equal length, shape (clips,).
        low: share left out at the lower end.
        high: share left out at the upper end.

    Returns:
        Indices in ascending order, int64.

    Raises:
        UserError: likelihoods that cannot be used, shares below 0, or nothing left.
    """
    logs = require_log_likelihoods(log_likelihoods)
    if not (low >= 0 and high >= 0 and low + high < 1):
        raise UserError(f"the shares left out must be at least 0 and below 1 together, got {low:g} and {high:g}")
    # A share like 0.29 of 100 clips is 29 of them, whatever 0.29 is in binary.
    start, stop = (int(share * len(logs) + 1e-9) for share in (low, 1 - high))
    if start >= stop:
        raise UserError(f"no clip of {len(logs)} is left between the lowest {low:g} and the highest {high:g}")
    return np.sort(np.argsort(logs, kind="stable")[start:stop])


def require_log_likelihoods(log_likelihoods: ArrayLike) -> np.ndarray:
    """Return log-likelihoods as float64 (clips,).

    Raises:
        UserError: they are not finite numbers, there are none, or they have another shape.
    """
    logs = np.asarray(log_likelihoods, dtype=np.float64)
    if logs.ndim != 1 or len(logs) == 0 or not np.isfinite(logs).all():
        raise UserError(f"log-likelihoods must be finite numbers of shape (clips,), got the shape {logs.shape}")
    return logs
