"""The loop over samples and over the rows of a program: all that runs between two calls from Python."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from sashimi_diffusion.generation.numba_engine.arithmetic import (
    add,
    add_from_frame,
    copy,
    gated_add,
    gelu,
    norm,
    put_in_frame,
)
from sashimi_diffusion.generation.numba_engine.barrier import long_waits, part, parted, wait, waits
from sashimi_diffusion.generation.numba_engine.products import linear, map_size
from sashimi_diffusion.generation.numba_engine.program import Kind
from sashimi_diffusion.generation.numba_engine.sampler import choose
from sashimi_diffusion.generation.numba_engine.spans import TOGETHER
from sashimi_diffusion.generation.numba_engine.states import state_step
from sashimi_diffusion.generation.numba_engine.vectors import LANES, whole_vectors

_NPLR, _DIAGONAL, _FEED_FORWARD = int(Kind.S4_NPLR), int(Kind.S4_DIAGONAL), int(Kind.FEED_FORWARD)
_SAVE, _ADD, _DOWN, _UP = int(Kind.SAVE), int(Kind.ADD), int(Kind.DOWN), int(Kind.UP)
# Threads part after a sample with more long waits than these and one in eight. Losing a core now and then is no reason.
_SOME, _FEW = 2, 8


@njit(nogil=True, error_model="numpy")
def _run(
    operations,
    weights,
    widths,
    starts,
    strides,
    num_tokens,
    embedding,
    head,
    position,
    loaded_at,
    states,
    spans,
    buffers,
    x,
    hidden,
    logits,
    tokens,
    uniforms,
    sampling,
    made_tokens,
    made_log_probabilities,
    made_entropies,
    counters,
    thread,
    n_threads,
):
    """Make ``uniforms.shape[1]`` samples for some streams, as one of ``n_threads`` that share the features.

    Threads that wait too long for each other, because they have not a core each, part after a sample.

    Args:
        operations, weights, widths, num_tokens, embedding, head: of the :class:`Program`.
        starts: where each stage's features begin in ``x``.
        strides: samples per position of each stage.
        position: samples absorbed so far.
        loaded_at: the position of the state that was loaded.
        states, spans: memory of all state spaces, see :func:`state_step`; the same for all threads, like the next four.
        buffers, x, hidden, logits: memory, a row per stream.
        tokens: the inputs to begin with; overwritten.
        uniforms: random numbers, (streams, n).
        sampling: temperature, top_k (0 for all) and top_p.
        made_tokens, made_log_probabilities, made_entropies: (streams, n), written by the first thread.
        counters: of the barrier, zeros.

    Returns:
        how many samples were made.
    """
    n_streams, count = uniforms.shape
    width, widest = widths[0], widths.max()
    normed = np.empty((n_streams, widest), dtype=np.float32)
    probabilities = np.empty(num_tokens, dtype=np.float64)
    scratch = np.empty(TOGETHER * 2 * LANES * _most_states(operations), dtype=np.float32)
    first, last = _share(width, thread, n_threads)
    for sample in range(count):
        before, waited = waits(counters, thread), long_waits(counters, thread)
        for stream in range(n_streams):
            row = embedding + tokens[stream] * width
            x[stream, first:last] = weights[row + first : row + last]
        pointer = 0
        while pointer < operations.shape[0]:
            pointer = _operation(
                operations, pointer, weights, starts, strides, position + sample, loaded_at, states, spans, buffers, x, hidden,
                normed, scratch, counters, thread, n_threads,
            )  # fmt: skip
        wait(counters, thread, n_threads)
        norm(x, 0, width, True, weights, head, normed)
        from_token, to_token = _share(num_tokens, thread, n_threads)
        linear(weights, head + 2 * width, width, num_tokens, from_token, to_token, normed, 0, logits, 0, False)
        wait(counters, thread, n_threads)
        if thread == 0:
            if long_waits(counters, thread) - waited > _SOME + (waits(counters, thread) - before) // _FEW:
                part(counters)
            for stream in range(n_streams):
                token, log_probability, entropy = choose(
                    logits[stream, :num_tokens], uniforms[stream, sample], sampling[0], int(sampling[1]), sampling[2], probabilities
                )
                tokens[stream] = token
                made_tokens[stream, sample] = token
                made_log_probabilities[stream, sample] = log_probability
                made_entropies[stream, sample] = entropy
        wait(counters, thread, n_threads)
        if parted(counters):
            return sample + 1
    return count


@njit(nogil=True, error_model="numpy")
def _operation(
    operations, pointer, weights, starts, strides, position, loaded_at, states, spans, buffers, x, hidden,
    normed, scratch, counters, thread, n_threads,
):  # fmt: skip
    """Do one row for this thread's share of the features; returns the next row.

    A thread writes its own share and may read all of it only behind a barrier.
    """
    row = operations[pointer]
    kind, stage, width, layer_norm = row[0], row[1], row[2], row[3] == 1
    begin, place, inner, pool, span = row[4], row[5], row[6], row[7], row[9]
    at, low = starts[stage], starts[min(stage + 1, starts.size - 1)]
    first, last = _share(width, thread, n_threads)
    after_norm = begin + (2 * width if layer_norm else 2)
    if kind in (_NPLR, _DIAGONAL):
        wait(counters, thread, n_threads)
        norm(x, at, width, layer_norm, weights, begin, normed)
        done = position // strides[stage] - loaded_at // strides[stage]
        maps = state_step(
            kind == _NPLR, weights, after_norm, inner, width, states, place, spans, span, done, first, last,
            normed, hidden, scratch,
        )  # fmt: skip
        gelu(hidden, first, last)
        wait(counters, thread, n_threads)
        gates = whole_vectors(width), 2 * whole_vectors(width)
        linear(weights, maps, width, width, first, last, hidden, 0, hidden, gates[0], False)
        maps += map_size(width, width)
        linear(weights, maps, width, width, first, last, hidden, 0, hidden, gates[1], False)
        gated_add(x, at, hidden, gates, first, last)
    elif kind == _FEED_FORWARD:
        wait(counters, thread, n_threads)
        norm(x, at, width, layer_norm, weights, begin, normed)
        from_inner, to_inner = _share(inner, thread, n_threads)
        linear(weights, after_norm, width, inner, from_inner, to_inner, normed, 0, hidden, 0, False)
        gelu(hidden, from_inner, to_inner)
        wait(counters, thread, n_threads)
        second = after_norm + map_size(width, inner)
        linear(weights, second, inner, width, first, last, hidden, 0, x, at, True)
    elif kind == _SAVE:
        copy(x, at, first, last, buffers, place)
    elif kind == _ADD:
        add(x, at, first, last, buffers, place)
    elif kind == _DOWN:
        slot = position // strides[stage] % pool
        put_in_frame(x, at, first, last, buffers, place, pool, slot)
        if slot < pool - 1:
            return row[8]
        wait(counters, thread, n_threads)
        low_first, low_last = _share(inner, thread, n_threads)
        linear(weights, begin, width * pool, inner, low_first, low_last, buffers, place, x, low, False)
    elif kind == _UP:
        wait(counters, thread, n_threads)
        linear(weights, begin, inner, width * pool, first * pool, last * pool, x, low, hidden, 0, False)
    else:
        slot = position // strides[stage] % pool
        add_from_frame(x, at, first, last, buffers, place, pool, slot)
        if slot == pool - 1:
            copy(hidden, 0, first * pool, last * pool, buffers, place)
    return pointer + 1


@njit(nogil=True)
def _most_states(operations):
    """The most states that a feature of some layer has."""
    most = 0
    for row in operations:
        if row[0] in (_NPLR, _DIAGONAL):
            most = max(most, row[6])
    return most


@njit(nogil=True)
def _share(size, thread, n_threads):
    """The part of ``size`` that is a thread's own, in whole groups of a map's outputs."""
    part = (size // n_threads + LANES - 1) // LANES * LANES
    return min(thread * part, size), size if thread == n_threads - 1 else min((thread + 1) * part, size)


def _compiled(sources: int) -> Any:
    """:func:`_run` compiled, and kept on disk for the next process.

    numba looks for changes in this file alone; the closure's variable makes any change of this package count.
    """

    @njit(nogil=True, cache=True, error_model="numpy")
    def compiled(*arguments):
        return _run(*arguments) if sources else None

    return compiled


def _sources() -> int:
    """A number, not 0, that tells one state of this package's files from another."""
    texts = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    return 1 + zlib.crc32(b"".join(texts))


run = _compiled(_sources())
