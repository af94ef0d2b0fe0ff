"""PESQ and STOI, measures of speech quality and intelligibility, by the packages pesq and pystoi."""

import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np

from sashimi_diffusion.data.audio import resample
from sashimi_diffusion.errors import UserError

WIDE, NARROW = 16_000, 8_000
"""Sample rates in Hz of wide-band PESQ (P.862.2) and narrow-band PESQ (P.862)."""
ADVICE = {
    "pesq": "pip install pesq (it needs a C compiler; the notice in its C files permits few uses, see docs/vocoder.md)",
    "pystoi": 'pip install pystoi, or the extra "vocoder"',
}
"""How to install each package."""


def require_package(name: str, option: str) -> None:
    """Check that one of the packages is installed.

    Args:
        name: a key of ``ADVICE``.
        option: the option that needs it, for the error message.

    Raises:
        UserError: it is not installed.
    """
    if find_spec(name) is None:
        raise UserError(f"{option} needs the package {name}: {ADVICE[name]}; or leave out {option}")


def pesq(generated: np.ndarray, recording: np.ndarray, sample_rate: int) -> float:
    """Return the predicted opinion score of PESQ (ITU-T P.862), from 1.0 to about 4.6; NaN where it finds no speech.

    Both waveforms are resampled to 16 kHz for the wide-band score, or to 8 kHz for the narrow-band score if the sample
    rate is below 16 kHz; the two are not comparable.

    Args:
        generated: float, (L,).
        recording: float, (L,).
        sample_rate: sample rate of both in Hz.
    """
    package: Any = import_module("pesq")

    rate = WIDE if sample_rate >= WIDE else NARROW
    mine, real = (resample(np.asarray(one, dtype=np.float32), sample_rate, rate) for one in (generated, recording))
    if not (mine.any() and real.any()):
        return float("nan")
    mode = "wb" if rate == WIDE else "nb"
    score = float(package.pesq(rate, real, mine, mode, on_error=package.PesqError.RETURN_VALUES))
    return score if score > 0 else float("nan")


def stoi(generated: np.ndarray, recording: np.ndarray, sample_rate: int) -> float:
    """Return the short-time objective intelligibility (Taal et al. 2011), up to 1; NaN for less than 0.4 s of sound.

    Args:
        generated: float, (L,).
        recording: float, (L,).
        sample_rate: sample rate of both in Hz.
    """
    package: Any = import_module("pystoi")

    if not np.any(recording):
        return float("nan")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        value = float(package.stoi(np.float64(recording), np.float64(generated), sample_rate))
    return float("nan") if any("Not enough STFT frames" in str(one.message) for one in caught) else value
