"""Linear maps of a step, with their sums in vector registers.

The weights of a map are packed in the order in which they are read: for every ``LANES`` outputs, one vector for each
input; then the biases. Outputs are padded to whole vectors with zeros. ``STREAMS`` streams use each vector of weights
when it is loaded.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from sashimi_diffusion.generation.numba_engine.vectors import (
    GROUPS,
    LANES,
    STREAMS,
    Vectors,
    fast_math,
    index,
    whole_vectors,
)


class Map(NamedTuple):
    """Position and size of a packed map.

    Args:
        begin: index of its first weight in the array of weights.
        n_in, n_out: number of inputs and of outputs.
    """

    begin: int
    n_in: int
    n_out: int


class Columns(NamedTuple):
    """The columns of ``values``, float32 (streams, columns), from ``first`` on."""

    values: np.ndarray
    first: int


@fast_math
def shard_range(size: int, shard: int, n_shards: int) -> tuple[int, int]:
    """Return start and end of one of ``n_shards`` parts of ``range(size)``; each start is a multiple of ``LANES``."""
    part = (size // n_shards + LANES - 1) // LANES * LANES
    return min(shard * part, size), size if shard == n_shards - 1 else min((shard + 1) * part, size)


def packed_shards(weight: np.ndarray, bias: np.ndarray, n_shards: int) -> np.ndarray:
    """Return a map, packed as one map for each shard of its inputs. Only the first one has the bias.

    The sum of their outputs is the output of the whole map.

    Args:
        weight: (out, in).
        bias: (out,).
        n_shards: number of shards.
    """
    ranges = [shard_range(weight.shape[1], shard, n_shards) for shard in range(n_shards)]
    biases = [bias, *[np.zeros_like(bias)] * (n_shards - 1)]
    return np.concatenate(
        [_packed(weight[:, first:last], shard_bias) for (first, last), shard_bias in zip(ranges, biases, strict=True)]
    )


def _packed(weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """Return ``weight`` (out, in) and ``bias`` (out,) in the order in which :func:`linear` reads them."""
    n_out, n_in = weight.shape
    whole = np.zeros((whole_vectors(n_out), n_in + 1), dtype=np.float32)
    whole[:n_out, :n_in], whole[:n_out, n_in] = weight, bias
    by_group = whole[:, :n_in].reshape(len(whole) // LANES, LANES, n_in).transpose(0, 2, 1)
    return np.concatenate([by_group.ravel(), whole[:, n_in]])


@fast_math
def map_size(n_in: int, n_out: int) -> int:
    """Return the number of float32 numbers of a packed map."""
    return whole_vectors(n_out) * (n_in + 1)


@fast_math
def linear(
    weights: np.ndarray, linear_map: Map, outputs: tuple[int, int], source: Columns, target: Columns, added: bool
) -> None:
    """Compute target = W · source + bias for each stream; if ``added``, target += W · source + bias.

    Args:
        weights: array with the packed map.
        linear_map: the map in ``weights``.
        outputs: start and end of the outputs to compute; the start is a multiple of ``LANES``.
        source: inputs, ``n_in`` columns.
        target: outputs, with columns for whole vectors.
        added: whether the result is added to ``target``.
    """
    n_in, x, y = linear_map.n_in, source.values, target.values
    n_streams, bias = x.shape[0], linear_map.begin + whole_vectors(linear_map.n_out) * n_in
    at, end = outputs[0], whole_vectors(outputs[1])
    while at < end:
        groups = GROUPS if at + GROUPS * LANES <= end else 1
        group, to = linear_map.begin + at * n_in, target.first + at
        stream = 0
        while stream < n_streams:
            count = STREAMS if stream + STREAMS <= n_streams else 1
            if count == 1 and groups == 1:
                _map_one_group(weights, group, bias + at, n_in, x, source.first, y, to, stream, added)
            elif count == 1:
                _map_groups(weights, group, bias + at, n_in, x, source.first, y, to, stream, added)
            elif groups == 1:
                _map_one_group_of_streams(weights, group, bias + at, n_in, x, source.first, y, to, stream, added)
            else:
                _map_groups_of_streams(weights, group, bias + at, n_in, x, source.first, y, to, stream, added)
            stream += count
        at += groups * LANES


def _map(n_streams: int, groups: int) -> Any:
    """Return a compiled function that computes ``groups`` vectors of outputs of ``n_streams`` streams."""

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
    ) -> tuple[Any, Callable]:
        number, truth = types.intp, types.boolean
        signature = types.void(weights, number, number, number, source, number, target, number, number, truth)
        return signature, lambda *compiling: _emit_map(n_streams, groups, *compiling)

    return intrinsic(typed)


def _emit_map(n_streams: int, groups: int, context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Emit the code of :func:`_map`; ``arguments`` are those of its ``typed``, after the context."""
    emit = Vectors(context, builder, signature, arguments)
    _, begin, bias, n_in, _, from_column, _, to_column, stream, added = arguments
    group_size = builder.mul(n_in, index(LANES))
    maps = [emit.pointer(0, builder.add(begin, builder.mul(group_size, index(g)))) for g in range(groups)]
    rows = [builder.add(stream, index(s)) for s in range(n_streams)]
    sources = [emit.pointer(4, row, from_column) for row in rows]
    targets = [emit.pointer(6, row, to_column) for row in rows]
    # A single stream has several accumulators, each for a part of its inputs: their sums do not wait for each other.
    accumulators = [[[emit.accumulator() for _ in maps] for _ in sources] for _ in range(STREAMS // n_streams)]

    def add(part: int, i: Any) -> None:
        vectors = [emit.load(weights, builder.mul(i, index(LANES))) for weights in maps]
        for numbers, of_stream in zip(sources, accumulators[part], strict=True):
            x = emit.broadcast(emit.load_scalar(numbers, i))
            for vector, accumulator in zip(vectors, of_stream, strict=True):
                emit.add_product(accumulator, x, vector)

    parts = len(accumulators)
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
            values = [builder.load(of_part[s][g]) for of_part in accumulators]
            values.append(emit.load(biases, place))
            values.append(emit.select(added, emit.load(target, place)))
            emit.store(emit.sum(values), target, place)
    return context.get_dummy_value()


_map_one_group, _map_groups = _map(1, 1), _map(1, GROUPS)
_map_one_group_of_streams, _map_groups_of_streams = _map(STREAMS, 1), _map(STREAMS, GROUPS)
