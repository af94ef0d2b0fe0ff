"""Errors of pitch and voicing of a generated waveform against the recording that it should equal."""

from dataclasses import dataclass

import numpy as np

from sashimi_evaluation.metrics.frames import HOP_SECONDS, sounding_frames
from sashimi_evaluation.metrics.harmonics import FRAME_SECONDS, VOICED, pitch_periods

SEGMENT_SECONDS = 30.0
"""Longer waveforms are analyzed in segments; frames sound in relation to the loudest one of their segment."""


@dataclass(frozen=True)
class PitchError:
    """Sums over the frames of one pair, from which the errors of one or many pairs follow.

    Args:
        squares: squared differences of the pitches in cents², over the frames that are voiced in both.
        both: number of frames that are voiced in both.
        different: number of frames that are voiced in one of them only.
        frames: number of all frames.
    """

    squares: float
    both: int
    different: int
    frames: int


def pitch_error(generated: np.ndarray, recording: np.ndarray, sample_rate: int) -> PitchError:
    """Return the errors of pitch and voicing of a waveform, frame by frame, every 10 ms.

    Args:
        generated: float, (L,).
        recording: float, (L,).
        sample_rate: sample rate of both in Hz.
    """
    mine, real = (pitch_track(one, sample_rate) for one in (generated, recording))
    voiced, really = np.isfinite(mine), np.isfinite(real)
    both = voiced & really
    cents = 1200 * np.log2(mine[both] / real[both])
    return PitchError(float(np.square(cents).sum()), int(both.sum()), int((voiced != really).sum()), len(real))


def pitch_track(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return the pitch of a waveform in Hz every 10 ms, NaN where it is not voiced, float64 (frames,).

    The pitch is from 70 to 400 Hz, in frames of 40 ms; for the estimator see :func:`.harmonic_properties`. A frame that
    does not sound is not voiced.

    Args:
        waveform: float, (L,), not empty.
        sample_rate: sample rate in Hz, at least 2 kHz.
    """
    length, hop = round(FRAME_SECONDS * sample_rate), round(HOP_SECONDS * sample_rate)
    step = round(SEGMENT_SECONDS / HOP_SECONDS) * hop
    # A segment has all frames that begin in it, so it ends later by the rest of the last frame.
    segments = [
        waveform[start : start + step + length - hop] for start in range(0, max(len(waveform) - length, 0) + 1, step)
    ]
    return np.concatenate([_track(segment, sample_rate, length, hop) for segment in segments])


def _track(segment: np.ndarray, sample_rate: int, length: int, hop: int) -> np.ndarray:
    pitches = np.full(max(len(segment) - length, 0) // hop + 1, np.nan)
    frames = sounding_frames(segment, sample_rate, FRAME_SECONDS)
    if len(frames.starts):
        periods, strengths = pitch_periods(frames)
        pitches[frames.starts // hop] = np.where(strengths >= VOICED, sample_rate / periods, np.nan)
    return pitches
