"""The order and the random numbers of training examples, as functions of (seed, step).

A resumed run needs no stored state of them.
"""

import numpy as np

# First word of the seed of a stream; each purpose has its own.
TRAINING, VALIDATION, EPOCH, STEP, MEASURE, DROPOUT = range(6)


def stream(*words: int) -> np.random.Generator:
    """Return the random stream of a tuple of whole numbers; different tuples have independent streams."""
    return np.random.default_rng(words)


class ShuffledEpochs:
    """An endless order of ``count`` examples: each epoch is a new permutation."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, number: int) -> int:
        """Return the index, below ``count``, of example ``number`` of the run."""
        epoch, place = divmod(number, self.count)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, stream(EPOCH, self.seed, epoch).permutation(self.count)
        return int(self._order[place])


def spread_evenly(count: int, most: int) -> list[int]:
    """Return up to ``most`` indices below ``count``, evenly spaced from the first to the last."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int)).tolist()
