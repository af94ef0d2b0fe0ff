"""Linear maps of a step, with their sums in vector registers.

The weights of a map are packed in the order in which they are read: for every ``LANES`` outputs, one vector for each
input. Its constants are a bias for each output, then a scale for each output, the factor of the sum over the inputs.
Outputs are padded to whole vectors with zeros. ``STREAMS`` streams use each vector of weights when it is loaded.

The dtype of the array of weights is their format, see ``WEIGHTS``. Numba compiles a step for each of them.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
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

WEIGHTS = {"float32": np.float32, "bfloat16": np.uint16, "int16": np.int16, "int8": np.int8}
"""Formats of the weights of linear maps, and the dtype of their array. Integers have a scale for each output."""


class Map(NamedTuple):
    """Position and size of a packed map.

    Args:
        begin: index of its first weight in ``Program.maps``.
        constants: index of its first bias in ``Program.weights``.
        n_in, n_out: number of inputs and of outputs.
    """

    begin: int
    constants: int
    n_in: int
    n_out: int


class PackedMap(NamedTuple):
    """The weights of a map in their format, and its constants in float32, both in the order in which they are read."""

    weights: np.ndarray
    constants: np.ndarray


class Columns(NamedTuple):
    """The columns of ``values``, float32 (streams, columns), from ``first`` on."""

    values: np.ndarray
    first: int


@fast_math
def shard_range(size: int, shard: int, n_shards: int) -> tuple[int, int]:
    """Return start and end of one of ``n_shards`` parts of ``range(size)``; each start is a multiple of ``LANES``."""
    part = (size // n_shards + LANES - 1) // LANES * LANES
    return min(shard * part, size), size if shard == n_shards - 1 else min((shard + 1) * part, size)


def packed_shards(weight: np.ndarray, bias: np.ndarray, n_shards: int, weights: str) -> PackedMap:
    """Return a map, packed as one map for each shard of its inputs. Only the first one has the bias.

    The sum of their outputs is the output of the whole map.

    Args:
        weight: float32 (out, in).
        bias: float32 (out,).
        n_shards: number of shards.
        weights: format of the weights, one of ``WEIGHTS``.
    """
    n_out, n_in = weight.shape
    whole = np.zeros((whole_vectors(n_out), n_in), dtype=np.float32)
    whole[:n_out] = weight
    numbers, scales = _in_format(whole, weights)
    bias = np.pad(bias, (0, len(whole) - n_out))
    ranges = [shard_range(n_in, shard, n_shards) for shard in range(n_shards)]
    biases = [bias, *[np.zeros_like(bias)] * (n_shards - 1)]
    return PackedMap(
        np.concatenate([_by_group(numbers[:, first:last]) for first, last in ranges]),
        np.concatenate([part for shard_bias in biases for part in (shard_bias, scales)]),
    )


def rounded(weight: np.ndarray, weights: str) -> np.ndarray:
    """Return the values, float32 (out, in), that the weights ``weight`` (out, in) have in a format."""
    numbers, scales = _in_format(weight, weights)
    if weights == "bfloat16":
        return (numbers.astype(np.uint32) << 16).view(np.float32)
    return numbers.astype(np.float32) * scales[:, None]


def _in_format(weight: np.ndarray, weights: str) -> tuple[np.ndarray, np.ndarray]:
    """Return weights (out, in) in a format, and the factor of each output (out,)."""
    dtype: Any = WEIGHTS[weights]
    if weights == "bfloat16":
        return torch.from_numpy(weight).bfloat16().view(torch.uint16).numpy(), np.ones(len(weight), np.float32)
    if weights == "float32":
        return weight, np.ones(len(weight), np.float32)
    scales = np.abs(weight).max(axis=1, initial=0) / np.float32(np.iinfo(dtype).max)
    scales[scales == 0] = 1
    return np.rint(weight / scales[:, None]).astype(dtype), scales


def _by_group(numbers: np.ndarray) -> np.ndarray:
    """Return weights (out, in) in the order in which :func:`linear` reads them."""
    n_out, n_in = numbers.shape
    return numbers.reshape(n_out // LANES, LANES, n_in).transpose(0, 2, 1).ravel()


@fast_math
def map_size(n_in: int, n_out: int) -> int:
    """Return the number of weights of a packed map."""
    return whole_vectors(n_out) * n_in


@fast_math
def constants_size(n_out: int) -> int:
    """Return the number of constants of a packed map."""
    return 2 * whole_vectors(n_out)


@fast_math
def linear(
    maps: np.ndarray,
    constants: np.ndarray,
    linear_map: Map,
    outputs: tuple[int, int],
    source: Columns,
    target: Columns,
    added: bool,
) -> None:
    """Compute target = W · source + bias for each stream; if ``added``, target += W · source + bias.

    Args:
        maps, constants: arrays with the weights and the constants of the packed map.
        linear_map: the map in them.
        outputs: start and end of the outputs to compute; the start is a multiple of ``LANES``.
        source: inputs, ``n_in`` columns.
        target: outputs, with columns for whole vectors.
        added: whether the result is added to ``target``.
    """
    n_in, x, y = linear_map.n_in, source.values, target.values
    n_streams, size = x.shape[0], whole_vectors(linear_map.n_out)
    at, end = outputs[0], whole_vectors(outputs[1])
    while at < end:
        groups = GROUPS if at + GROUPS * LANES <= end else 1
        group, bias, to = linear_map.begin + at * n_in, linear_map.constants + at, target.first + at
        scale, stream = bias + size, 0
        while stream < n_streams:
            count = STREAMS if stream + STREAMS <= n_streams else 1
            if count == 1 and groups == 1:
                _map_one_group(maps, group, constants, bias, scale, n_in, x, source.first, y, to, stream, added)
            elif count == 1:
                _map_groups(maps, group, constants, bias, scale, n_in, x, source.first, y, to, stream, added)
            elif groups == 1:
                _map_group_of_streams(maps, group, constants, bias, scale, n_in, x, source.first, y, to, stream, added)
            else:
                _map_groups_of_streams(maps, group, constants, bias, scale, n_in, x, source.first, y, to, stream, added)
            stream += count
        at += groups * LANES


def _map(n_streams: int, groups: int) -> Any:
    """Return a compiled function that computes ``groups`` vectors of outputs of ``n_streams`` streams."""

    def typed(
        context: Any,
        maps: Any,
        begin: Any,
        constants: Any,
        bias: Any,
        scale: Any,
        n_in: Any,
        source: Any,
        from_column: Any,
        target: Any,
        to_column: Any,
        stream: Any,
        added: Any,
    ) -> tuple[Any, Callable]:
        number, truth = types.intp, types.boolean
        positions = (maps, number, constants, number, number, number)
        signature = types.void(*positions, source, number, target, number, number, truth)
        return signature, lambda *compiling: _emit_map(n_streams, groups, *compiling)

    return intrinsic(typed)


def _emit_map(n_streams: int, groups: int, context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Emit the code of :func:`_map`; ``arguments`` are those of its ``typed``, after the context."""
    emit = Vectors(context, builder, signature, arguments)
    _, begin, _, bias, scale, n_in, _, from_column, _, to_column, stream, added = arguments
    group_size = builder.mul(n_in, index(LANES))
    maps = [emit.pointer(0, builder.add(begin, builder.mul(group_size, index(g)))) for g in range(groups)]
    rows = [builder.add(stream, index(s)) for s in range(n_streams)]
    sources = [emit.pointer(6, row, from_column) for row in rows]
    targets = [emit.pointer(8, row, to_column) for row in rows]
    # A single stream has several accumulators, each for a part of its inputs: their sums do not wait for each other.
    accumulators = [[[emit.accumulator() for _ in maps] for _ in sources] for _ in range(STREAMS // n_streams)]

    def add(part: int, i: Any) -> None:
        vectors = [emit.load_weights(0, weights, builder.mul(i, index(LANES))) for weights in maps]
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
    biases, scales = emit.pointer(2, bias), emit.pointer(2, scale)
    for s, target in enumerate(targets):
        for g in range(groups):
            place = index(g * LANES)
            total = emit.sum([builder.load(of_part[s][g]) for of_part in accumulators])
            value = emit.multiply_add(total, emit.load(scales, place), emit.load(biases, place))
            emit.store(emit.sum([value, emit.select(added, emit.load(target, place))]), target, place)
    return context.get_dummy_value()


_map_one_group, _map_groups = _map(1, 1), _map(1, GROUPS)
_map_group_of_streams, _map_groups_of_streams = _map(STREAMS, 1), _map(STREAMS, GROUPS)
