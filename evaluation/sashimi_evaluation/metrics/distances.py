"""Euclidean distances between clips, computed in blocks of rows so that memory stays bounded."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from sashimi_evaluation.metrics.arrays import feature_pair

_BLOCK_ENTRIES = 2**23  # 64 MiB of float64; a few temporary copies exist at a time
# Relative to the squared norms: features have float32 precision, so points closer than 1e-6 of their norm are equal.
_EQUAL = 1e-12


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Return consecutive slices that cover ``rows`` rows; a float64 block (slice, columns) fits into 64 MiB."""
    size = max(1, _BLOCK_ENTRIES // max(1, columns))
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def squared_distances(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Return the squared Euclidean distances of all pairs, by one matrix product.

    Args:
        rows: float64, shape (m, width).
        columns: float64, shape (n, width).

    Returns:
        float64, shape (m, n); exactly 0 where two points are equal within the precision of float32.
    """
    center = columns.mean(axis=0)  # points far from the origin would lose digits to cancellation
    rows, columns = rows - center, columns - center
    sizes = np.square(rows).sum(axis=1)[:, None] + np.square(columns).sum(axis=1)
    squared = sizes - 2 * (rows @ columns.T)
    squared[squared < _EQUAL * sizes] = 0
    return squared


def nearest_neighbors(queries: ArrayLike, references: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest reference of every query by Euclidean distance; the first one in case of a tie.

    Args:
        queries: shape (m, width).
        references: shape (n, width).

    Returns:
        Indices into ``references``, int64 (m,), and the distances, float64 (m,).

    Raises:
        UserError: the arrays are invalid, see :mod:`sashimi_evaluation.metrics.arrays`.
    """
    return compute_nearest_neighbors(*feature_pair(queries, references, ("the queries", "the references")))


def compute_nearest_neighbors(queries: np.ndarray, references: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return what :func:`nearest_neighbors` returns, for validated arrays."""
    blocks = row_blocks(len(queries), len(references))
    indices = np.concatenate([squared_distances(queries[block], references).argmin(axis=1) for block in blocks])
    return indices, np.linalg.norm(queries - references[indices], axis=1)
