"""Linear maps of a step, their sums kept in vector registers.

A map's weights lie as a thread reads them, from the first to the last: for every ``LANES`` outputs, all inputs, a
vector each. Where several streams are at hand, four of them share each vector that is read.
"""

from typing import Any

import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from sashimi_diffusion.generation.numba_engine.vectors import LANES, STREAMS, Vectors, index, whole_vectors

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

    ``source`` and ``target`` are (streams, features), ``sums`` is memory for (STREAMS, LANES) numbers.
    """
    n_streams = source.shape[0]
    bias = begin + whole_vectors(n_out) * n_in
    for group in range(first // LANES, (last + LANES - 1) // LANES):
        at, from_output, to_output = group * LANES, max(first, group * LANES), min(last, (group + 1) * LANES)
        stream = 0
        while stream < n_streams:
            count = STREAMS if stream + STREAMS <= n_streams else 1
            if count == STREAMS:
                _sums_of_four(weights, begin + at * n_in, n_in, source, stream, sums)
            else:
                _sums_of_one(weights, begin + at * n_in, n_in, source, stream, sums)
            for row in range(count):
                y = target[stream + row]
                for o in range(from_output, to_output):
                    value = sums[row, o - at] + weights[bias + o]
                    y[o] = y[o] + value if added else value
            stream += count


@intrinsic
def _sums_of_four(context: Any, weights: Any, begin: Any, n_in: Any, source: Any, stream: Any, sums: Any) -> tuple:
    """sums[s, o] = Σ_i source[stream + s, i] · weights[begin + LANES · i + o] for four streams."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Vectors(context, builder, signature, arguments)
        weights = emit.pointer(0, arguments[1])
        sources = [emit.pointer(3, builder.add(arguments[4], index(s)), index(0)) for s in range(STREAMS)]
        totals = [emit.total() for _ in range(STREAMS)]
        with cgutils.for_range(builder, arguments[2]) as loop:
            w = emit.load(weights, builder.mul(loop.index, index(LANES)))
            for total, numbers in zip(totals, sources, strict=True):
                emit.add_product(total, emit.everywhere(emit.number(numbers, loop.index)), w)
        for s, total in enumerate(totals):
            emit.store(builder.load(total), emit.pointer(5, index(s), index(0)), index(0))
        return context.get_dummy_value()

    return types.void(weights, types.intp, types.intp, source, types.intp, sums), generate


@intrinsic
def _sums_of_one(context: Any, weights: Any, begin: Any, n_in: Any, source: Any, stream: Any, sums: Any) -> tuple:
    """The same for one stream, whose inputs are dealt out to four totals: each waits for none of the others."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        emit = Vectors(context, builder, signature, arguments)
        weights, numbers = emit.pointer(0, arguments[1]), emit.pointer(3, arguments[4], index(0))
        totals = [emit.total() for _ in range(4)]

        def add(total: Any, i: Any) -> None:
            w = emit.load(weights, builder.mul(i, index(LANES)))
            emit.add_product(total, emit.everywhere(emit.number(numbers, i)), w)

        whole = builder.and_(arguments[2], index(-4))
        with cgutils.for_range_slice(builder, index(0), whole, index(4)) as (i, _):
            for part, total in enumerate(totals):
                add(total, builder.add(i, index(part)))
        with cgutils.for_range_slice(builder, whole, arguments[2], index(1)) as (i, _):
            add(totals[0], i)
        a, b, c, d = (builder.load(total) for total in totals)
        emit.store(builder.fadd(builder.fadd(a, b), builder.fadd(c, d)), emit.pointer(5, index(0), index(0)), index(0))
        return context.get_dummy_value()

    return types.void(weights, types.intp, types.intp, source, types.intp, sums), generate
