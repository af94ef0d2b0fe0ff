"""The levels of recordings: which are impossible, and which are possible but probably a mistake.

Full scale is 1.0. Recordings in floating point may exceed it, and mixes often do by a few decibels. Two bounds hold:

- A file with a sample above ``MAX_PEAK`` (92 dB above full scale), with a sample that is not finite, or with no sample
  above ``MIN_PEAK`` (200 dB below full scale, less than the smallest step of 32-bit integers) other than zeros is bad.
  :func:`sashimi_diffusion.data.decoding.decode_audio` checks this with :func:`peak_problem`.
- A file that is silent, or has a sample above ``USUAL_PEAK`` (24 dB above full scale), is used, but
  :func:`level_warning` says so. Floating-point samples in the scale of 16-bit integers, which reach 32768, are the
  usual cause of the latter.
"""

import math

import numpy as np

MAX_PEAK = 4e4
MIN_PEAK = 1e-10
USUAL_PEAK = 16.0


def peak_of(samples: np.ndarray) -> float:
    """Return the largest absolute value of float samples of any shape; NaN if there is one; 0 if there are none."""
    return max(float(samples.max()), -float(samples.min())) if samples.size else 0.0


def peak_problem(peak: float) -> str | None:
    """Return why a recording with this peak cannot be used, in a few words, or None.

    Args:
        peak: largest absolute value of its samples, before channels are mixed; NaN if a sample is NaN.
    """
    if not math.isfinite(peak):
        return "non-finite samples (NaN or infinity)"
    if peak > MAX_PEAK:
        return f"samples up to {peak:.3g}, but full scale is 1 and the limit is {MAX_PEAK:.0f}"
    if 0 < peak < MIN_PEAK:
        return f"no sample above {peak:.3g}, but full scale is 1 and anything below {MIN_PEAK} is no recording"
    return None


def contrast_db(samples: np.ndarray, sample_rate: int) -> float:
    """Return by how many decibels the loud parts of a recording exceed its quiet parts.

    These are the 95th and the 10th percentile of the root mean squares of its 20 ms. Speech has 15 dB or more; noise,
    silence, and speech with a large constant offset have less.

    Args:
        samples: float, shape (length,).
        sample_rate: in Hz.
    """
    frame = min(max(1, sample_rate // 50), len(samples))
    frames = samples[: len(samples) // frame * frame].reshape(-1, frame)
    levels = np.sqrt(np.square(frames, dtype=np.float64).mean(axis=1))
    quiet, loud = np.percentile(20 * np.log10(np.maximum(levels, 1e-7)), [10, 95])
    return float(loud - quiet)


def level_warning(samples: np.ndarray) -> str | None:
    """Return what is unusual about the level of a recording that can be used, in a few words, or None.

    The cache calls this for the result of :func:`sashimi_diffusion.data.audio.read_audio`, which has refused files with
    impossible levels, and stores the text with the recording. Data sets report the texts of all files in one warning
    with :func:`sashimi_diffusion.data.recordings.report_unusual_files`.

    Args:
        samples: float, shape (length,).
    """
    peak = peak_of(samples)
    if peak == 0:
        return "silent (all samples are 0)"
    if peak > USUAL_PEAK:
        return f"samples up to {peak:.5g}, but full scale is 1: 16-bit integers stored as floating point?"
    return None
