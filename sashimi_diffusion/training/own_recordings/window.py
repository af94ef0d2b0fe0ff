"""Choose the sample rate, the length of the training examples and the pooling factors for a folder of recordings."""

import math
from dataclasses import dataclass

import numpy as np

from sashimi_diffusion.data.decoding import MAX_SAMPLES
from sashimi_diffusion.training.own_recordings.survey import Survey

SHIFT = 0.05
"""Random shift of short recordings in seconds."""

_SHORTEST = 8  # samples of a window at the lowest rate of the network


@dataclass(frozen=True)
class Limits:
    """What a kind of network can learn on a kind of device.

    Args:
        sample_rate: the highest sample rate in Hz.
        length: the most samples of a training example; a power of two.
    """

    sample_rate: int
    length: int


@dataclass(frozen=True)
class Window:
    """The training examples.

    Args:
        sample_rate: in Hz.
        channels: audio channels; 1: those of the recordings are mixed.
        length: samples in an example.
        pool: pooling factors of the network; their product divides ``length``.
        random_shift: the setting ``data.random_shift``.
        examples: number of examples that the recordings give.
        longer: share of the recordings that are longer than an example.
        unused: share of the audio that is in no example: ends of recordings that are shorter than an example.
    """

    sample_rate: int
    channels: int
    length: int
    pool: tuple[int, ...]
    random_shift: int | None
    examples: int
    longer: float
    unused: float

    @property
    def seconds(self) -> float:
        """The duration of an example."""
        return self.length / self.sample_rate


def commonest_rate(survey: Survey) -> int:
    """Return the sample rate that most recordings have."""
    return next(iter(survey.counts(lambda recording: recording.sample_rate)))


def sample_rate_of(survey: Survey, limits: Limits) -> int:
    """Return the sample rate of the run: the commonest one of the recordings, within the limits."""
    return min(commonest_rate(survey), limits.sample_rate)


def channels_of(survey: Survey) -> int:
    """Return the audio channels of a network: those of the recordings, if all have equally many that differ."""
    first, *others = survey.counts(lambda recording: recording.channels)
    samples = max(recording.seconds * recording.sample_rate for recording in survey.recordings)
    too_long = samples * first > MAX_SAMPLES  # several channels of a recording count together
    return 1 if others or too_long or survey.levels.equal_channels else first


def choose_window(
    survey: Survey, sample_rate: int, channels: int, pool: tuple[int, ...], limits: Limits, shift: bool
) -> Window:
    """Return the training examples for recordings.

    Short recordings fit into an example. Long ones are cut into examples of the largest length.

    Args:
        survey: the recordings.
        sample_rate, channels: of the examples.
        pool: pooling factors of the network.
        limits: of the device.
        shift: whether short recordings are shifted within an example.
    """
    seconds = np.array([recording.seconds for recording in survey.recordings])
    usual, longest = np.percentile(seconds, 95), seconds.max()
    wanted = math.ceil((longest if longest <= 1.5 * usual else usual) * sample_rate)
    multiple = math.prod(pool)
    fits = wanted <= limits.length
    length = _smooth_length(max(wanted, _SHORTEST * multiple), multiple) if fits else limits.length
    window = length / sample_rate
    long = bool(np.median(seconds) >= 2 * window)
    examples = np.maximum(1, seconds // window)
    unused = 0.0 if long else np.maximum(0, seconds - examples * window - (SHIFT if shift else 0)).sum()
    return Window(
        sample_rate,
        channels,
        length,
        pool,
        None if long else round(SHIFT * sample_rate) if shift else 0,
        examples=int(examples.sum()),
        longer=float((seconds > window).mean()),
        unused=float(unused / seconds.sum()),
    )


def _smooth_length(samples: int, multiple: int) -> int:
    """Return the smallest length of at least ``samples`` that is a multiple with no other prime factors than 2, 3, 5.

    FFTs of such lengths are fast.
    """
    count = -(-samples // multiple)
    while not _is_smooth(count):
        count += 1
    return count * multiple


def _is_smooth(number: int) -> bool:
    for prime in (2, 3, 5):
        while number % prime == 0:
            number //= prime
    return number == 1
