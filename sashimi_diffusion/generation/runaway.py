"""Finding clips that degenerate into noise, which autoregressive models of audio are known to do."""

import numpy as np

FRAME_SECONDS = 0.05
_BANDS = 32
_FLAT, _LOUD, _LEAST_SECONDS = 0.6, 0.05, 0.2


def runaway_second(waveform: np.ndarray, sample_rate: int) -> float | None:
    """The second from which on a clip is nothing but loud noise until its end; None if it is not.

    A frame of 50 ms counts as noise when its root mean square is above 0.05 (full scale 1) and its power is spread
    evenly over the frequencies: geometric over arithmetic mean of 32 equal bands above 0.6. That is 1 for white noise
    in the mean; vowels stay below 0.1, and fricatives, which miss the low bands, below 0.5. Noise of less than 0.2 s at
    the end is no runaway.

    Args:
        waveform: (L,), full scale 1.
        sample_rate: in Hz.
    """
    size = round(FRAME_SECONDS * sample_rate)
    count = len(waveform) // size
    # Frames end with the clip: the part before the first one is what they need not cover.
    start = len(waveform) - count * size
    noisy = [_is_noise(frame) for frame in np.asarray(waveform[start:], dtype=np.float64).reshape(count, size)]
    quiet = [index for index, noise in enumerate(noisy) if not noise]
    first = quiet[-1] + 1 if quiet else 0
    if (count - first) * FRAME_SECONDS < _LEAST_SECONDS - 1e-9:
        return None
    return (start + first * size) / sample_rate


def _is_noise(frame: np.ndarray) -> bool:
    if np.sqrt(np.mean(np.square(frame))) < _LOUD:
        return False
    power = np.abs(np.fft.rfft(frame * np.hanning(len(frame))))[1:] ** 2
    bands = np.array([band.mean() for band in np.array_split(power, _BANDS)])
    return bool(np.exp(np.mean(np.log(bands + 1e-20))) > _FLAT * bands.mean())
