"""Tests of the order of the training examples in shards."""

import itertools
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sashimi_diffusion.data.recordings import Recordings
from sashimi_diffusion.training.examples import ShuffledShards, unused_ends

GROUPS = [7, 1, 12, 5]


def shard_of(index: int) -> int:
    return next(shard for shard in range(len(GROUPS)) if index < sum(GROUPS[: shard + 1]))


@given(
    groups=st.lists(st.integers(1, 9), min_size=1, max_size=6),
    buffer=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
)
def test_each_epoch_has_every_example_once(groups: list[int], buffer: int, seed: int) -> None:
    order, count = ShuffledShards(groups, buffer, seed), sum(groups)
    for epoch in range(3):
        assert sorted(order[epoch * count + place] for place in range(count)) == list(range(count))


def test_an_example_does_not_depend_on_those_before_it() -> None:
    forward, backward = ShuffledShards(GROUPS, 4, 1), ShuffledShards(GROUPS, 4, 1)
    indices = [forward[number] for number in range(100)]
    assert [backward[number] for number in reversed(range(100))] == indices[::-1]
    assert indices[:25] != indices[25:50]
    assert indices != [ShuffledShards(GROUPS, 4, 2)[number] for number in range(100)]


@pytest.mark.parametrize("buffer", [1, 4, 100])
def test_a_block_has_the_examples_of_few_shards(buffer: int) -> None:
    """The shards follow each other: a block of 1 never goes back to a shard, one of 100 mixes all of them."""
    order = ShuffledShards(GROUPS, buffer, 0)
    shards = [shard_of(order[number]) for number in range(25)]
    changes = sum(one != other for one, other in itertools.pairwise(shards))
    if buffer == 1:
        assert changes == 3
    if buffer == 4:
        assert all(len(set(shards[start : start + 4])) <= 3 for start in range(0, 25, 4))
    if buffer == 100:
        assert changes > 8
    assert Counter(shards) == dict(enumerate(GROUPS))


class Silence(Recordings):
    """Silent recordings of the given numbers of samples at 100 Hz, cut into items of 64 samples."""

    def __init__(self, lengths: Sequence[int]) -> None:
        items = [(n, start) for n, samples in enumerate(lengths) for start in range(0, max(samples - 64, 0) + 1, 64)]
        super().__init__(items, np.full(len(items), -1), 100, 64)
        self.lengths = lengths

    def load(self, recording: int) -> tuple[np.ndarray, float]:
        return np.zeros(self.lengths[recording], dtype=np.float32), 0.0


@pytest.mark.parametrize(
    ("lengths", "shift", "text"),
    [
        (
            [100, 100],
            0,
            "36% of the audio is not used: 2 of 2 recordings go on after their last example of 0.64 s, by 0.36 s",
        ),
        (
            [100, 64],
            6,
            "18% of the audio is not used: 1 of 2 recordings go on after their last example of 0.64 s, by 0.30 s",
        ),
        ([150], 2, "13% of the audio is not used: 1 of 1 recordings go on after their last example of 0.64 s, by 0.20"),
        ([100, 100], 36, ""),  # the shift reaches the ends
        ([100, 100], None, ""),
        ([64, 30, 128], 0, ""),
        ([6401], 0, ""),  # a negligible part
    ],
)
def test_unused_ends_are_named(lengths: list[int], shift: int | None, text: str) -> None:
    described = unused_ends(Silence(lengths), shift)
    assert described.startswith(text)
    assert bool(described) == bool(text)
