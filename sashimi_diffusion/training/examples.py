"""Which example is trained on when, as a function of (seed, step): nothing to store, nothing to fast-forward."""

import numpy as np

# First word of a stream's seed, so that no two purposes ever share one.
TRAINING, VALIDATION, EPOCH, STEP, MEASURE, DROPOUT = range(6)


def stream(*words: int) -> np.random.Generator:
    """An independent random stream per tuple of whole numbers."""
    return np.random.default_rng(words)


class ShuffledEpochs:
    """An endless order of ``count`` examples: a new permutation each epoch."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed = count, seed
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __getitem__(self, number: int) -> int:
        """Which of the ``count`` examples is the run's example ``number``."""
        epoch, place = divmod(number, self.count)
        if epoch != self._epoch:
            self._epoch, self._order = epoch, stream(EPOCH, self.seed, epoch).permutation(self.count)
        return int(self._order[place])


def spread_evenly(count: int, most: int) -> list[int]:
    """At most ``most`` indices of ``count`` things, from the first to the last."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int)).tolist()
