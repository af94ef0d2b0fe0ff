"""Linear maps of a step, their sums kept in vector registers.

A map's weights lie as a thread reads them, from the first to the last: for every ``LANES`` outputs, all inputs, a
vector each; then the biases. Where several streams are at hand, four of them share each vector that is read. Outputs
are filled up to whole vectors with zeros.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from sashimi_diffusion.generation.numba_engine.vectors import GROUPS, LANES, STREAMS, Vectors, index, whole_vectors

_OPTIONS = {"nogil": True, "fastmath": True, "error_model": "numpy"}


@njit(**_OPTIONS)
def share(size, index, shares):
    """First and last of the numbers below ``size`` that are in a share, from a whole vector on."""
    part = (size // shares + LANES - 1) // LANES * LANES
    return min(index * part, size), size if index == shares - 1 else min((index + 1) * part, size)


def packed_shares(weight: np.ndarray, bias: np.ndarray, shares: int) -> np.ndarray:
    """A map as one map for each share of its inputs, of which the first has the bias: their sum is the whole map."""
    ranges = [share(weight.shape[1], index, shares) for index in range(shares)]
    biases = [bias, *[np.zeros_like(bias)] * (shares - 1)]
    return np.concatenate(
        [packed(weight[:, first:last], own) for (first, last), own in zip(ranges, biases, strict=True)]
    )


def packed(weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """A map as :func:`linear` reads it, from ``weight`` (out, in) and ``bias`` (out,); groups are filled with zeros."""
    n_out, n_in = weight.shape
    whole = np.zeros((whole_vectors(n_out), n_in + 1), dtype=np.float32)
    whole[:n_out, :n_in], whole[:n_out, n_in] = weight, bias
    by_group = whole[:, :n_in].reshape(len(whole) // LANES, LANES, n_in).transpose(0, 2, 1)
    return np.concatenate([by_group.ravel(), whole[:, n_in]])


@njit(**_OPTIONS)
def map_size(n_in, n_out):
    """Numbers that a packed map takes."""
    return whole_vectors(n_out) * (n_in + 1)


@njit(**_OPTIONS)
def linear(weights, begin, n_in, n_out, first, last, source, from_column, target, to_column, added):
    """target (+)= source · W + bias for outputs ``first`` to ``last`` of a map that lies at ``begin``.

    Args:
        first, last: from a whole vector on; ``target`` has room for whole vectors.
        source, from_column: (streams, columns), inputs from that column on.
        target, to_column: (streams, columns), outputs from that column on.
    """
    n_streams, bias = source.shape[0], begin + whole_vectors(n_out) * n_in
    at, end = first, whole_vectors(last)
    while at < end:
        groups = GROUPS if at + GROUPS * LANES <= end else 1
        group, to = begin + at * n_in, to_column + at
        stream = 0
        while stream < n_streams:
            count = STREAMS if stream + STREAMS <= n_streams else 1
            if count == 1 and groups == 1:
                _map_one(weights, group, bias + at, n_in, source, from_column, target, to, stream, added)
            elif count == 1:
                _map_one_widely(weights, group, bias + at, n_in, source, from_column, target, to, stream, added)
            elif groups == 1:
                _map_four(weights, group, bias + at, n_in, source, from_column, target, to, stream, added)
            else:
                _map_four_widely(weights, group, bias + at, n_in, source, from_column, target, to, stream, added)
            stream += count
        at += groups * LANES


def _map(n_streams: int, groups: int) -> Callable:
    """target (+)= source · W + bias for ``n_streams`` streams and the outputs of ``groups`` vectors."""

    def typed(
        context: Any,
        weights: Any,
        begin: Any,
        bias: Any,
        n_in: Any,
        source: Any,
        from_column: Any,
        target: Any,
        to_column: Any,
        stream: Any,
        added: Any,
    ) -> tuple:
        number, truth = types.intp, types.boolean
        signature = types.void(weights, number, number, number, source, number, target, number, number, truth)
        return signature, lambda *compiling: _emit(n_streams, groups, *compiling)

    return intrinsic(typed)


def _emit(n_streams: int, groups: int, context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    emit = Vectors(context, builder, signature, arguments)
    _, begin, bias, n_in, _, from_column, _, to_column, stream, added = arguments
    group_size = builder.mul(n_in, index(LANES))
    maps = [emit.pointer(0, builder.add(begin, builder.mul(group_size, index(g)))) for g in range(groups)]
    rows = [builder.add(stream, index(s)) for s in range(n_streams)]
    sources = [emit.pointer(4, row, from_column) for row in rows]
    targets = [emit.pointer(6, row, to_column) for row in rows]
    # The inputs of a single stream are dealt out to four totals: each waits for none of the others.
    totals = [[[emit.total() for _ in maps] for _ in sources] for _ in range(STREAMS // n_streams)]

    def add(part: int, i: Any) -> None:
        vectors = [emit.load(weights, builder.mul(i, index(LANES))) for weights in maps]
        for numbers, of_stream in zip(sources, totals[part], strict=True):
            x = emit.everywhere(emit.number(numbers, i))
            for vector, total in zip(vectors, of_stream, strict=True):
                emit.add_product(total, x, vector)

    parts = len(totals)
    whole = builder.and_(n_in, index(-parts))
    with cgutils.for_range_slice(builder, index(0), whole, index(parts)) as (i, _):
        for part in range(parts):
            add(part, builder.add(i, index(part)))
    with cgutils.for_range_slice(builder, whole, n_in, index(1)) as (i, _):
        add(0, i)
    biases = emit.pointer(0, bias)
    for s, target in enumerate(targets):
        for g in range(groups):
            place = index(g * LANES)
            values = [builder.load(of_part[s][g]) for of_part in totals]
            values.append(emit.load(biases, place))
            values.append(emit.where(added, emit.load(target, place)))
            emit.store(emit.sum(values), target, place)
    return context.get_dummy_value()


_map_one, _map_one_widely = _map(1, 1), _map(1, GROUPS)
_map_four, _map_four_widely = _map(STREAMS, 1), _map(STREAMS, GROUPS)
