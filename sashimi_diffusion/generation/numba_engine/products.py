"""Linear maps of a step, their sums kept in vector registers.

A map's weights lie as a thread reads them, from the first to the last: for every ``LANES`` outputs, all inputs, a
vector each. Where several streams are at hand, four of them share each vector that is read.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from sashimi_diffusion.generation.numba_engine.vectors import GROUPS, LANES, STREAMS, Vectors, index, whole_vectors

_OPTIONS = {"nogil": True, "fastmath": True, "error_model": "numpy"}


def packed(weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """A map as :func:`linear` reads it, from ``weight`` (out, in) and ``bias`` (out,); groups are filled with zeros."""
    n_out, n_in = weight.shape
    whole = np.zeros((whole_vectors(n_out), n_in + 1), dtype=np.float32)
    whole[:n_out, :n_in], whole[:n_out, n_in] = weight, bias
    by_group = whole[:, :n_in].reshape(-1, LANES, n_in).transpose(0, 2, 1)
    return np.concatenate([by_group.ravel(), whole[:, n_in]])


@njit(**_OPTIONS)
def map_size(n_in, n_out):
    """Numbers that a packed map takes."""
    return whole_vectors(n_out) * (n_in + 1)


@njit(**_OPTIONS)
def linear(weights, begin, n_in, n_out, first, last, source, target, added, sums):
    """target (+)= source · W + bias for outputs ``first`` to ``last`` of a map that lies at ``begin``.

    ``source`` and ``target`` are (streams, features), ``sums`` is memory for (STREAMS, GROUPS · LANES) numbers.
    """
    n_streams, bias = source.shape[0], begin + whole_vectors(n_out) * n_in
    at, end = first // LANES * LANES, whole_vectors(last)
    while at < end:
        groups = GROUPS if at + GROUPS * LANES <= end else 1
        from_output, to_output = max(first, at), min(last, at + groups * LANES)
        stream = 0
        while stream < n_streams:
            count = STREAMS if stream + STREAMS <= n_streams else 1
            if count == 1 and groups == 1:
                _sums_of_one(weights, begin + at * n_in, n_in, source, stream, sums)
            elif count == 1:
                _wide_sums_of_one(weights, begin + at * n_in, n_in, source, stream, sums)
            elif groups == 1:
                _sums_of_four(weights, begin + at * n_in, n_in, source, stream, sums)
            else:
                _wide_sums_of_four(weights, begin + at * n_in, n_in, source, stream, sums)
            for row in range(count):
                y = target[stream + row]
                for o in range(from_output, to_output):
                    value = sums[row, o - at] + weights[bias + o]
                    y[o] = y[o] + value if added else value
            stream += count
        at += groups * LANES


def _sums(n_streams: int, groups: int) -> Callable:
    """sums[s, o] = Σ_i source[stream + s, i] · W[i, o] for the outputs o of groups whose weights lie at ``begin``."""

    def typed(context: Any, weights: Any, begin: Any, n_in: Any, source: Any, stream: Any, sums: Any) -> tuple:
        signature = types.void(weights, types.intp, types.intp, source, types.intp, sums)
        return signature, lambda *compiling: _emit(n_streams, groups, *compiling)

    return intrinsic(typed)


def _emit(n_streams: int, groups: int, context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    emit = Vectors(context, builder, signature, arguments)
    _, begin, n_in, _, stream, _ = arguments
    group_size = builder.mul(n_in, index(LANES))
    maps = [emit.pointer(0, builder.add(begin, builder.mul(group_size, index(g)))) for g in range(groups)]
    sources = [emit.pointer(3, builder.add(stream, index(s)), index(0)) for s in range(n_streams)]
    # The inputs of a single stream are dealt out to four totals: each waits for none of the others.
    totals = [[[emit.total() for _ in maps] for _ in sources] for _ in range(STREAMS // n_streams)]

    def add(part: int, i: Any) -> None:
        rows = [emit.load(weights, builder.mul(i, index(LANES))) for weights in maps]
        for numbers, of_stream in zip(sources, totals[part], strict=True):
            x = emit.everywhere(emit.number(numbers, i))
            for row, total in zip(rows, of_stream, strict=True):
                emit.add_product(total, x, row)

    parts = len(totals)
    whole = builder.and_(n_in, index(-parts))
    with cgutils.for_range_slice(builder, index(0), whole, index(parts)) as (i, _):
        for part in range(parts):
            add(part, builder.add(i, index(part)))
    with cgutils.for_range_slice(builder, whole, n_in, index(1)) as (i, _):
        add(0, i)
    for s in range(n_streams):
        for g in range(groups):
            values = [builder.load(of_part[s][g]) for of_part in totals]
            while len(values) > 1:
                values = [builder.fadd(a, b) for a, b in zip(values[::2], values[1::2], strict=True)]
            emit.store(values[0], emit.pointer(5, index(s), index(g * LANES)), index(0))
    return context.get_dummy_value()


_sums_of_one, _wide_sums_of_one = _sums(1, 1), _sums(1, GROUPS)
_sums_of_four, _wide_sums_of_four = _sums(STREAMS, 1), _sums(STREAMS, GROUPS)
