"""Order and random numbers of training examples, as functions of (seed, step).

They have no state, so a checkpoint does not store any, and a resumed run uses the same examples.
"""

import numpy as np

# First number of the key of a random stream; each purpose has its own.
TRAINING, VALIDATION, EPOCH, STEP, MEASURE, DROPOUT = range(6)


def stream(*key: int) -> np.random.Generator:
    """Return the random number generator of a key; generators of different keys are independent."""
    return np.random.default_rng(key)


class ShuffledEpochs:
    """Order of ``count`` examples over any number of epochs; each epoch is a new permutation."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, number: int) -> int:
        """Return the index, from 0 to ``count`` - 1, of example ``number`` (from 0) of the run."""
        epoch, place = divmod(number, self.count)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, stream(EPOCH, self.seed, epoch).permutation(self.count)
        return int(self._order[place])


def spread_evenly(count: int, limit: int) -> list[int]:
    """Return up to ``limit`` of the indices 0 to ``count`` - 1, evenly spaced from the first to the last."""
    return np.unique(np.linspace(0, count - 1, min(limit, count)).round().astype(int)).tolist()
