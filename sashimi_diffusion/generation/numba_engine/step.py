"""The loop over samples and over the rows of a program: all that runs between two calls from Python."""

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from sashimi_diffusion.generation.numba_engine.arithmetic import (
    add,
    add_from_frame,
    add_partials,
    copy,
    gated_add,
    gelu,
    norm,
    put_in_frame,
)
from sashimi_diffusion.generation.numba_engine.barrier import long_waits, part, parted, wait, waits
from sashimi_diffusion.generation.numba_engine.products import linear, map_size, share
from sashimi_diffusion.generation.numba_engine.program import Kind
from sashimi_diffusion.generation.numba_engine.sampler import choose
from sashimi_diffusion.generation.numba_engine.states import state_step
from sashimi_diffusion.generation.numba_engine.vectors import whole_vectors

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
    partials,
    all_buffers,
    all_x,
    all_normed,
    all_hidden,
    all_scratch,
    inputs,
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
        states, spans: memory of all state spaces, see :func:`state_step`; shared by the threads, like the partial sums.
        partials: memory for what threads add up, (2, shares, streams, columns).
        all_buffers, all_x, all_normed, all_hidden, all_scratch: memory of each thread, the first axis.
        inputs: the tokens to begin with; overwritten with those to go on with.
        uniforms: random numbers, (streams, n).
        sampling: temperature, top_k (0 for all) and top_p.
        made_tokens, made_log_probabilities, made_entropies: (streams, n), written by the first thread.
        counters: of the barrier, zeros.

    Returns:
        how many samples were made.
    """
    n_streams, count = uniforms.shape
    width = widths[0]
    probabilities = np.empty(num_tokens, dtype=np.float64)
    scratch = all_scratch[thread]
    buffers, x, normed, hidden = all_buffers[thread], all_x[thread], all_normed[thread], all_hidden[thread]
    if thread > 0:
        buffers[:] = all_buffers[0]
    tokens, sample = inputs.copy(), 0
    wait(counters, thread, n_threads)
    while sample < count and not parted(counters):
        before, waited = waits(counters, thread), long_waits(counters, thread)
        for stream in range(n_streams):
            row = embedding + tokens[stream] * width
            x[stream, :width] = weights[row : row + width]
        pointer = 0
        while pointer < operations.shape[0]:
            pointer = _operation(
                operations, pointer, weights, starts, strides, position + sample, loaded_at, states, spans, partials,
                buffers, x, hidden, normed, scratch, counters, thread, n_threads,
            )  # fmt: skip
        norm(x, 0, width, True, weights, head, normed)
        logits = partials[waits(counters, thread) & 1, 0]
        first, last = share(num_tokens, thread, n_threads)
        linear(weights, head + 2 * whole_vectors(width), width, num_tokens, first, last, normed, 0, logits, 0, False)
        if thread == 0 and long_waits(counters, thread) - waited > _SOME + (waits(counters, thread) - before) // _FEW:
            part(counters)
        wait(counters, thread, n_threads)
        for stream in range(n_streams):
            token, log_probability, entropy = choose(
                logits[stream, :num_tokens],
                uniforms[stream, sample],
                sampling[0],
                int(sampling[1]),
                sampling[2],
                probabilities,
            )
            tokens[stream] = token
            if thread == 0:
                made_tokens[stream, sample] = token
                made_log_probabilities[stream, sample] = log_probability
                made_entropies[stream, sample] = entropy
        sample += 1
    if thread == 0:
        inputs[:] = tokens
    return sample


@njit(nogil=True, error_model="numpy")
def _operation(
    operations, pointer, weights, starts, strides, position, loaded_at, states, spans, partials, buffers, x, hidden,
    normed, scratch, counters, thread, n_threads,
):  # fmt: skip
    """Do one row; returns the next row.

    A thread has the whole of ``x`` and ``buffers``, and of ``hidden`` its share until the other threads' are added.
    """
    row = operations[pointer]
    kind, stage, width, layer_norm = row[0], row[1], row[2], row[3] == 1
    begin, place, inner, pool, span = row[4], row[5], row[6], row[7], row[9]
    at, low = starts[stage], starts[min(stage + 1, starts.size - 1)]
    first, last = share(width, thread, n_threads)
    after_norm = begin + 2 * whole_vectors(width if layer_norm else 1)
    if kind in (_NPLR, _DIAGONAL):
        norm(x, at, width, layer_norm, weights, begin, normed)
        done = position // strides[stage] - loaded_at // strides[stage]
        output = state_step(
            kind == _NPLR, weights, after_norm, inner, width, states, place, spans, span, done, first, last,
            normed, hidden, scratch,
        )  # fmt: skip
        gelu(hidden, first, last)
        gates = whole_vectors(width), 2 * whole_vectors(width)
        _joint_map(
            weights, output, width, gates[1], hidden, 0, hidden, gates[0], False, partials, counters, thread, n_threads
        )
        gated_add(x, at, width, hidden, gates)
    elif kind == _FEED_FORWARD:
        norm(x, at, width, layer_norm, weights, begin, normed)
        first, last = share(inner, thread, n_threads)
        linear(weights, after_norm, width, inner, first, last, normed, 0, hidden, 0, False)
        gelu(hidden, first, last)
        second = after_norm + map_size(width, inner)
        _joint_map(weights, second, inner, width, hidden, 0, x, at, True, partials, counters, thread, n_threads)
    elif kind == _SAVE:
        copy(x, at, width, buffers, place)
    elif kind == _ADD:
        add(x, at, width, buffers, place)
    elif kind == _DOWN:
        slot = position // strides[stage] % pool
        put_in_frame(x, at, width, buffers, place, pool, slot)
        if slot < pool - 1:
            return row[8]
        _joint_map(
            weights, begin, width * pool, inner, buffers, place, x, low, False, partials, counters, thread, n_threads
        )
    elif kind == _UP:
        _joint_map(weights, begin, inner, width * pool, x, low, hidden, 0, False, partials, counters, thread, n_threads)
    else:
        slot = position // strides[stage] % pool
        add_from_frame(x, at, width, buffers, place, pool, slot)
        if slot == pool - 1:
            copy(hidden, 0, width * pool, buffers, place)
    return pointer + 1


@njit(nogil=True)
def _joint_map(
    weights, begin, n_in, n_out, source, from_column, target, to_column, added, partials, counters, thread, n_threads
):
    """:func:`linear` of a map that lies by shares of its inputs; each thread has its own of them in ``source``.

    All threads get the whole result. Partial sums have two places in turn: a thread that is ahead writes to the other
    one, and comes back to the first when all have read it.
    """
    shares = partials.shape[1]
    if shares == 1:
        linear(weights, begin, n_in, n_out, 0, n_out, source, from_column, target, to_column, added)
        return
    sums = partials[waits(counters, thread) & 1]
    for index in range(shares):
        first, last = share(n_in, index, shares)
        if index % n_threads == thread:
            linear(weights, begin, last - first, n_out, 0, n_out, source, from_column + first, sums[index], 0, False)
        begin += map_size(last - first, n_out)
    wait(counters, thread, n_threads)
    add_partials(sums, target, to_column, n_out, added)


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
