"""Detect clips that degenerate into noise, a known failure of autoregressive models of audio."""

import numpy as np

FRAME_SECONDS = 0.05
_BANDS = 32
_MIN_FLATNESS, _MIN_RMS, _MIN_SECONDS = 0.6, 0.05, 0.2


def runaway_second(waveform: np.ndarray, sample_rate: int) -> float | None:
    """Return the second at which a clip turns into loud noise that lasts until its end; None if it does not.

    A frame of 50 ms is noise if its root mean square is above 0.05 (full scale 1) and its spectral flatness is above
    0.6. The flatness is the ratio of the geometric to the arithmetic mean of the power in 32 equal bands. White noise
    has a flatness of 1 on average, vowels stay below 0.1, and fricatives, which have no low bands, below 0.5. Noise of
    less than 0.2 s at the end does not count.

    Args:
        waveform: (L,), full scale 1.
        sample_rate: sampling rate in Hz.
    """
    size = round(FRAME_SECONDS * sample_rate)
    count = len(waveform) // size
    # The last frame ends with the clip; samples before the first frame are ignored.
    start = len(waveform) - count * size
    noisy = [_is_noise(frame) for frame in np.asarray(waveform[start:], dtype=np.float64).reshape(count, size)]
    others = [index for index, noise in enumerate(noisy) if not noise]
    first = others[-1] + 1 if others else 0  # of the noise at the end
    if (count - first) * FRAME_SECONDS < _MIN_SECONDS - 1e-9:
        return None
    return (start + first * size) / sample_rate


def _is_noise(frame: np.ndarray) -> bool:
    if np.sqrt(np.mean(np.square(frame))) < _MIN_RMS:
        return False
    power = np.abs(np.fft.rfft(frame * np.hanning(len(frame))))[1:] ** 2
    bands = np.array([band.mean() for band in np.array_split(power, _BANDS)])
    return bool(np.exp(np.mean(np.log(bands + 1e-20))) > _MIN_FLATNESS * bands.mean())
