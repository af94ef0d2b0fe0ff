"""What can be said of a clip without understanding it: level, noise floor, silence, clipping."""

from dataclasses import dataclass

import numpy as np

FLOOR_DB = -120.0
"""Nothing is called quieter than this, in dB relative to full scale."""
SILENT_DB = -60.0
"""A clip whose loudest frame is below this counts as silent, in dB relative to full scale."""
FRAME_SECONDS = 0.02
SOUND_DB = -40.0
"""What surrounds the outermost frames that are louder than this, relative to the loudest, is not part of the sound."""


@dataclass(frozen=True)
class Signal:
    """Facts of one waveform, full scale being 1.0.

    Args:
        seconds: its length.
        level: root mean square in dB.
        noise_floor: level of the frame (20 ms) that a tenth of the frames are quieter than, in dB.
        inner_floor: the same of the frames from the first to the last that are within 40 dB of the loudest: without
            the silence around a word, which some clips are filled up with.
        loudest: level of the loudest frame in dB.
        clipped: share of the samples at or beyond full scale of 16 bits, from 0 to 1.
    """

    seconds: float
    level: float
    noise_floor: float
    inner_floor: float
    loudest: float
    clipped: float

    @property
    def silent(self) -> bool:
        """Whether nothing in it is louder than -60 dB."""
        return self.loudest < SILENT_DB


def describe(waveform: np.ndarray, sample_rate: int) -> Signal:
    """The facts of a waveform.

    Args:
        waveform: float, (L,), not empty.
        sample_rate: in Hz.
    """
    samples = np.asarray(waveform, dtype=np.float64)
    frame = min(len(samples), max(1, round(FRAME_SECONDS * sample_rate)))
    whole = len(samples) // frame
    power = np.square(samples[: whole * frame]).reshape(whole, frame).mean(axis=1)
    sound = np.flatnonzero(power >= power.max() * 10 ** (SOUND_DB / 10))
    return Signal(
        seconds=len(samples) / sample_rate,
        level=_decibels(np.square(samples).mean()),
        noise_floor=_decibels(np.quantile(power, 0.1)),
        inner_floor=_decibels(np.quantile(power[sound[0] : sound[-1] + 1], 0.1)),
        loudest=_decibels(power.max()),
        clipped=float((np.abs(samples) >= 1 - 2**-15).mean()),
    )


def _decibels(power: float) -> float:
    return float(max(FLOOR_DB, 10 * np.log10(max(power, 1e-300))))
