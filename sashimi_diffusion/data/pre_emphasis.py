"""Pre-emphasis: a filter that raises high frequencies, and its inverse.

Music and speech have 20 to 40 dB less energy at high than at low frequencies, white noise has equally much. After
pre-emphasis, a diffusion model sees all frequencies at more similar signal-to-noise ratios.
"""

from torch import Tensor
from torch.nn import functional as F


def pre_emphasize(waveform: Tensor, coefficient: float) -> Tensor:
    """Return y[n] = x[n] - coefficient · x[n - 1], with zero before the first sample.

    Args:
        waveform: x, (..., L).
        coefficient: from 0 (no filter) to below 1.
    """
    if coefficient == 0:
        return waveform
    return waveform - coefficient * F.pad(waveform[..., :-1], (1, 0))


def de_emphasize(waveform: Tensor, coefficient: float) -> Tensor:
    """Return the inverse of :func:`pre_emphasize`, x[n] = y[n] + coefficient · x[n - 1].

    The recursion 1 / (1 - c/z) is the product of (1 + c^k / z^k) over the powers of two k below the length.

    Args:
        waveform: y, (..., L).
        coefficient: from 0 to below 1.
    """
    lag, factor = 1, coefficient
    while lag < waveform.shape[-1] and factor > 0:
        waveform = waveform + factor * F.pad(waveform[..., :-lag], (lag, 0))
        lag, factor = 2 * lag, factor * factor
    return waveform
