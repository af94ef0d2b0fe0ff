"""Order and random numbers of training examples, as functions of (seed, step).

They have no state, so a checkpoint does not store any, and a resumed run uses the same examples.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np

from sashimi_diffusion.data.recordings import Recordings

# First number of the key of a random stream; each purpose has its own.
TRAINING, VALIDATION, EPOCH, STEP, MEASURE, DROPOUT, DEVICE, DISTILLATION = range(8)

_NEGLIGIBLE = 0.01  # share of the audio


def stream(*key: int) -> np.random.Generator:
    """Return the random number generator of a key; generators of different keys are independent."""
    return np.random.default_rng(key)


class Order(Protocol):
    """The order of the training examples of a run."""

    def __getitem__(self, number: int) -> int:
        """Return the index of example ``number`` (from 0) of the run."""


def training_order(recordings: Recordings, seed: int) -> Order:
    """Return the order in which a run uses the items of a data set."""
    if recordings.groups is None:
        return ShuffledEpochs(len(recordings), seed)
    return ShuffledShards(recordings.groups, recordings.shuffle_buffer, seed)


class ShuffledEpochs:
    """Order of ``count`` examples over any number of epochs; each epoch is a new permutation.

    Several threads may read it at the same time.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._order = lru_cache(maxsize=2)(self._permutation)  # batches prepared ahead may be of the next epoch

    def __getitem__(self, number: int) -> int:
        """Return the index, from 0 to ``count`` - 1, of example ``number`` (from 0) of the run."""
        epoch, place = divmod(number, self.count)
        return int(self._order(epoch)[place])

    def _permutation(self, epoch: int) -> np.ndarray:
        return stream(EPOCH, self.seed, epoch).permutation(self.count)


class ShuffledShards:
    """Order of the examples in shards over any number of epochs, as a shuffle buffer would give it.

    In each epoch, the shards follow each other in a new random order. The sequence of their examples is divided into
    blocks of ``buffer`` examples, and each block is permuted. So the examples that are used one after another are in a
    few shards, and the place of an example is a function of its number; no buffer has to be stored.

    Several threads may read it at the same time.

    Args:
        groups: number of examples in each shard, in the order of the indices.
        buffer: number of examples in a block.
        seed: seed of the run.
    """

    def __init__(self, groups: Sequence[int], buffer: int, seed: int) -> None:
        self.count, self.buffer, self.seed = sum(groups), buffer, seed
        self._sizes = np.asarray(groups, dtype=np.int64)
        self._firsts = np.cumsum(self._sizes) - self._sizes
        self._shards = lru_cache(maxsize=2)(self._shuffled_shards)
        self._block = lru_cache(maxsize=4)(self._permutation)

    def __getitem__(self, number: int) -> int:
        """Return the index, from 0 to ``count`` - 1, of example ``number`` (from 0) of the run."""
        epoch, place = divmod(number, self.count)
        block, offset = divmod(place, self.buffer)
        place = block * self.buffer + int(self._block(epoch, block)[offset])
        shards, ends = self._shards(epoch)
        position = int(np.searchsorted(ends, place, side="right"))
        shard = shards[position]
        return int(self._firsts[shard] + place - (ends[position] - self._sizes[shard]))

    def _shuffled_shards(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the shards of an epoch in their order, and the number of examples up to the end of each."""
        shards = stream(EPOCH, self.seed, epoch).permutation(len(self._sizes))
        return shards, np.cumsum(self._sizes[shards])

    def _permutation(self, epoch: int, block: int) -> np.ndarray:
        size = min(self.buffer, self.count - block * self.buffer)
        return stream(EPOCH, self.seed, epoch, block).permutation(size)


def unused_ends(recordings: Recordings, random_shift: int | None) -> str:
    """Return in words how much audio is in no training example because it comes after the last one of its recording.

    The text is empty if that is less than 1 % of the audio, or if the recordings are read from tar files, where their
    lengths are not known.

    Args:
        recordings: the training examples.
        random_shift: the setting ``data.random_shift``.
    """
    if recordings.groups is not None or random_shift is None:
        return ""
    last = {recording: index for index, (recording, _) in enumerate(recordings.items)}
    lengths = np.array([recordings.clip_length(index) for index in last.values()])
    ends = np.array([recordings.items[index][1] for index in last.values()]) + recordings.length + random_shift
    unused = np.maximum(0, lengths - ends)
    if unused.sum() < _NEGLIGIBLE * lengths.sum():
        return ""
    some, seconds = unused[unused > 0], recordings.length / recordings.sample_rate
    return (
        f"{unused.sum() / lengths.sum():.0%} of the audio is not used: {len(some)} of {len(unused)} recordings go on "
        f"after their last example of {seconds:.2f} s, by {some.mean() / recordings.sample_rate:.2f} s on average"
    )


def spread_evenly(count: int, limit: int) -> list[int]:
    """Return up to ``limit`` of the indices 0 to ``count`` - 1, evenly spaced from the first to the last."""
    return np.unique(np.linspace(0, count - 1, min(limit, count)).round().astype(int)).tolist()
