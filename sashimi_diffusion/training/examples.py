"""Order and random numbers of training examples, as functions of (seed, step).

They have no state, so a checkpoint does not store any, and a resumed run uses the same examples.
"""

from functools import lru_cache

import numpy as np

# First number of the key of a random stream; each purpose has its own.
TRAINING, VALIDATION, EPOCH, STEP, MEASURE, DROPOUT, DEVICE = range(7)


def stream(*key: int) -> np.random.Generator:
    """Return the random number generator of a key; generators of different keys are independent."""
    return np.random.default_rng(key)


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


def spread_evenly(count: int, limit: int) -> list[int]:
    """Return up to ``limit`` of the indices 0 to ``count`` - 1, evenly spaced from the first to the last."""
    return np.unique(np.linspace(0, count - 1, min(limit, count)).round().astype(int)).tolist()
