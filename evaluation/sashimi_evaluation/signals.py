"""What can be said of a clip without understanding it: level, noise floor, silence, clipping."""

from dataclasses import dataclass

import numpy as np

FLOOR_DB = -120.0
"""Nothing is called quieter than this, in dB relative to full scale."""
SILENT_DB = -60.0
"""A clip whose loudest frame is below this counts as silent, in dB relative to full scale."""
FRAME_SECONDS = 0.02


@dataclass(frozen=True)
class Signal:
    """Facts of one waveform, full scale being 1.0.

    Args:
        seconds: its length.
        level: root mean square in dB.
        noise_floor: level of the frame (20 ms) that a tenth of the frames are quieter than, in dB.
        loudest: level of the loudest frame in dB.
        clipped: share of the samples at or beyond full scale of 16 bits, from 0 to 1.
    """

    seconds: float
    level: float
    noise_floor: float
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
    return Signal(
        seconds=len(samples) / sample_rate,
        level=_decibels(np.square(samples).mean()),
        noise_floor=_decibels(np.quantile(power, 0.1)),
        loudest=_decibels(power.max()),
        clipped=float((np.abs(samples) >= 1 - 2**-15).mean()),
    )


def _decibels(power: float) -> float:
    return float(max(FLOOR_DB, 10 * np.log10(max(power, 1e-300))))
