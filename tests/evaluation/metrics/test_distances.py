"""Tests of block-wise distances against their definition."""

import numpy as np
import pytest

from sashimi_evaluation.metrics import distances
from sashimi_evaluation.metrics.distances import nearest_neighbors, row_blocks, squared_distances


def test_blocks_cover_all_rows_once(monkeypatch):
    monkeypatch.setattr(distances, "_BLOCK_ENTRIES", 10)
    for rows, columns in [(7, 3), (6, 3), (5, 11), (1, 1)]:
        covered = [row for block in row_blocks(rows, columns) for row in range(rows)[block]]
        assert covered == list(range(rows))
        assert all((block.stop - block.start) * columns <= max(10, columns) for block in row_blocks(rows, columns))


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_squared_distances(offset: float):
    random = np.random.default_rng(0)
    rows, columns = random.normal(size=(9, 5)) + offset, random.normal(size=(7, 5)) + offset
    expected = np.square(rows[:, None] - columns).sum(axis=-1)
    np.testing.assert_allclose(squared_distances(rows, columns), expected, rtol=1e-10)


def test_equal_points_are_exactly_at_distance_zero():
    points = np.random.default_rng(0).normal(size=(50, 30)) + 100
    squared = squared_distances(points, points)
    assert (np.diag(squared) == 0).all()
    assert squared[~np.eye(50, dtype=bool)].min() > 1


def test_nearest_neighbors(monkeypatch):
    random = np.random.default_rng(1)
    queries, references = random.normal(size=(23, 4)), random.normal(size=(17, 4))
    queries[3] = references[5]
    expected = np.linalg.norm(queries[:, None] - references, axis=-1)
    for entries in (2**23, 40):
        monkeypatch.setattr(distances, "_BLOCK_ENTRIES", entries)
        indices, found = nearest_neighbors(queries, references)
        np.testing.assert_array_equal(indices, expected.argmin(axis=1))
        np.testing.assert_allclose(found, expected.min(axis=1), rtol=1e-14)
    assert found[3] == 0
