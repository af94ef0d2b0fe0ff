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
from sashimi_diffusion.generation.numba_engine.states import state_step
from sashimi_diffusion.generation.numba_engine.vectors import GROUPS, LANES, STREAMS

_NPLR, _DIAGONAL, _FEED_FORWARD = int(Kind.S4_NPLR), int(Kind.S4_DIAGONAL), int(Kind.FEED_FORWARD)
_SAVE, _ADD, _DOWN, _UP = int(Kind.SAVE), int(Kind.ADD), int(Kind.DOWN), int(Kind.UP)
# Threads part after a sample with more long waits than these and one in eight. Losing a core now and then is no reason.
_SOME, _FEW = 2, 8


@njit(nogil=True, error_model="numpy")
def _run(
    operations,
    weights,
    starts,
    strides,
    embedding,
    head,
    position,
    states,
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
        operations, weights, embedding, head: of the :class:`Program`.
        starts: where each stage's features begin in ``x``, with the end last.
        strides: samples per position of each stage.
        position: samples absorbed so far.
        states: memory of all state spaces, see :func:`state_step`; the same for all threads, like the next four.
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
    num_tokens = logits.shape[1]
    width = starts[1] - starts[0]
    widest = 0
    for stage in range(starts.size - 1):
        widest = max(widest, starts[stage + 1] - starts[stage])
    normed = np.empty((n_streams, widest), dtype=np.float32)
    probabilities = np.empty(num_tokens, dtype=np.float64)
    sums = np.empty((STREAMS, GROUPS * LANES), dtype=np.float32)
    first, last = _share(width, thread, n_threads)
    for sample in range(count):
        before, waited = waits(counters, thread), long_waits(counters, thread)
        for stream in range(n_streams):
            row = embedding + tokens[stream] * width
            x[stream, first:last] = weights[row + first : row + last]
        pointer = 0
        while pointer < operations.shape[0]:
            pointer = _operation(
                operations, pointer, weights, starts, strides, position + sample, states, buffers, x, hidden, normed,
                sums, counters, thread, n_threads,
            )  # fmt: skip
        wait(counters, thread, n_threads)
        norm(x, width, True, weights, head, normed)
        from_token, to_token = _share(num_tokens, thread, n_threads)
        linear(weights, head + 2 * width, width, num_tokens, from_token, to_token, normed, logits, False, sums)
        wait(counters, thread, n_threads)
        if thread == 0:
            if long_waits(counters, thread) - waited > _SOME + (waits(counters, thread) - before) // _FEW:
                part(counters)
            for stream in range(n_streams):
                token, log_probability, entropy = choose(
                    logits[stream], uniforms[stream, sample], sampling[0], int(sampling[1]), sampling[2], probabilities
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
    operations, pointer, weights, starts, strides, position, states, buffers, x, hidden, normed, sums,
    counters, thread, n_threads,
):  # fmt: skip
    """Do one row for this thread's share of the features; returns the next row.

    A thread writes its own share and may read all of it only behind a barrier.
    """
    row = operations[pointer]
    kind, stage, width, layer_norm = row[0], row[1], row[2], row[3] == 1
    begin, place, inner, pool = row[4], row[5], row[6], row[7]
    features = x[:, starts[stage] : starts[stage + 1]]
    first, last = _share(width, thread, n_threads)
    after_norm = begin + (2 * width if layer_norm else 2)
    if kind in (_NPLR, _DIAGONAL):
        wait(counters, thread, n_threads)
        norm(features, width, layer_norm, weights, begin, normed)
        skip = after_norm + width * inner * (10 if kind == _NPLR else 6)
        state_step(kind == _NPLR, weights, after_norm, skip, inner, states, place, first, last, normed, hidden)
        gelu(hidden, first, last)
        wait(counters, thread, n_threads)
        gates = hidden[:, width:]
        linear(weights, skip + width, width, 2 * width, first, last, hidden, gates, False, sums)
        linear(weights, skip + width, width, 2 * width, width + first, width + last, hidden, gates, False, sums)
        gated_add(features, gates, width, first, last)
    elif kind == _FEED_FORWARD:
        wait(counters, thread, n_threads)
        norm(features, width, layer_norm, weights, begin, normed)
        from_inner, to_inner = _share(inner, thread, n_threads)
        linear(weights, after_norm, width, inner, from_inner, to_inner, normed, hidden, False, sums)
        gelu(hidden, from_inner, to_inner)
        wait(counters, thread, n_threads)
        second = after_norm + map_size(width, inner)
        linear(weights, second, inner, width, first, last, hidden, features, True, sums)
    elif kind == _SAVE:
        copy(features, first, last, buffers, place)
    elif kind == _ADD:
        add(features, first, last, buffers, place)
    elif kind == _DOWN:
        slot = position // strides[stage] % pool
        put_in_frame(features, first, last, buffers, place, pool, slot)
        if slot < pool - 1:
            return row[8]
        wait(counters, thread, n_threads)
        low_first, low_last = _share(inner, thread, n_threads)
        low = x[:, starts[stage + 1] : starts[stage + 2]]
        frame = buffers[:, place : place + width * pool]
        linear(weights, begin, width * pool, inner, low_first, low_last, frame, low, False, sums)
    elif kind == _UP:
        wait(counters, thread, n_threads)
        low = x[:, starts[stage + 1] : starts[stage + 2]]
        linear(weights, begin, inner, width * pool, first * pool, last * pool, low, hidden, False, sums)
    else:
        slot = position // strides[stage] % pool
        add_from_frame(features, first, last, buffers, place, pool, slot)
        if slot == pool - 1:
            copy(hidden, first * pool, last * pool, buffers, place)
    return pointer + 1


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
