"""Euclidean distances between many clips in blocks of rows, so that no whole matrix of pairs is ever held."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from sashimi_evaluation.metrics.arrays import feature_pair

_BLOCK_ENTRIES = 2**23  # 64 MiB of float64, of which a few temporary copies exist at a time
# Features come from float32 networks: what lies closer than a millionth of its own size is the same point.
_SAME = 1e-12


def row_blocks(rows: int, columns: int) -> Iterator[slice]:
    """Consecutive slices of ``rows`` rows such that one block of a (rows, columns) matrix fits into 64 MiB."""
    step = max(1, _BLOCK_ENTRIES // max(1, columns))
    return (slice(start, min(start + step, rows)) for start in range(0, rows, step))


def squared_distances(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Squared Euclidean distances of all pairs, by one matrix product.

    Args:
        rows: float64, shape (m, width).
        columns: float64, shape (n, width).

    Returns:
        float64, shape (m, n); exactly 0 where both are equal up to the precision of float32.
    """
    centre = columns.mean(axis=0)  # the product loses digits where points are far from the origin
    rows, columns = rows - centre, columns - centre
    sizes = np.square(rows).sum(axis=1)[:, None] + np.square(columns).sum(axis=1)
    squared = sizes - 2 * (rows @ columns.T)
    squared[squared < _SAME * sizes] = 0
    return squared


def nearest_neighbours(queries: ArrayLike, references: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """The nearest reference of every query by Euclidean distance; of equally near ones the first.

    Args:
        queries: shape (m, width).
        references: shape (n, width).

    Returns:
        Indices into ``references``, int64 (m,), and the distances, float64 (m,).

    Raises:
        UserError: the arrays cannot be used, see ``sashimi_evaluation.metrics.arrays``.
    """
    queries, references = feature_pair(queries, references, ("the queries", "the references"))
    blocks = row_blocks(len(queries), len(references))
    indices = np.concatenate([squared_distances(queries[block], references).argmin(axis=1) for block in blocks])
    return indices, np.linalg.norm(queries - references[indices], axis=1)
