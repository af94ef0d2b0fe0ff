"""The compiled loop over the samples of a block and the operations of a program, which Python calls once per block."""

from typing import NamedTuple

import numpy as np
from numba import njit

from sashimi_diffusion.generation.numba_engine.arithmetic import (
    add,
    add_from_frame,
    add_gated,
    copy,
    copy_to_frame,
    embed,
    gelu,
    norm,
    sum_partials,
)
from sashimi_diffusion.generation.numba_engine.barrier import (
    Team,
    long_wait_count,
    request_separation,
    separation_requested,
    wait,
    wait_count,
)
from sashimi_diffusion.generation.numba_engine.compiled_cache import kept_on_disk
from sashimi_diffusion.generation.numba_engine.linear_maps import (
    Columns,
    Map,
    constants_size,
    linear,
    map_size,
    shard_range,
)
from sashimi_diffusion.generation.numba_engine.memory import Memory
from sashimi_diffusion.generation.numba_engine.operations import Kind, Operation
from sashimi_diffusion.generation.numba_engine.program import Program
from sashimi_diffusion.generation.numba_engine.sampler import sample_token
from sashimi_diffusion.generation.numba_engine.state_spaces import state_space_step
from sashimi_diffusion.generation.numba_engine.vectors import compiled, whole_vectors

# Threads separate after a sample in which more than _LONG_WAITS + waits // _WAITS_PER_LONG_WAIT waits were long.
# Occasional preemption should not stop the sharing.
_LONG_WAITS, _WAITS_PER_LONG_WAIT = 2, 8


class Block(NamedTuple):
    """Samples to generate for some streams, and the memory for the results.

    Args:
        inputs: tokens before the first sample, int64 (streams,); overwritten with the last generated tokens.
        uniforms: random numbers in [0, 1), float64 (streams, n).
        temperature, top_k, top_p: see :class:`sashimi_diffusion.generation.Sampling`; ``top_k`` 0 keeps all tokens.
        tokens: generated tokens, int64 (streams, n).
        log_probabilities, entropies: of the tokens, in nats, float32 (streams, n).
    """

    inputs: np.ndarray
    uniforms: np.ndarray
    temperature: float
    top_k: int
    top_p: float
    tokens: np.ndarray
    log_probabilities: np.ndarray
    entropies: np.ndarray

    def streams(self, part: slice) -> "Block":
        """Return the part of the block for some streams; its arrays are views."""
        rows = {name: getattr(self, name)[part] for name in ("inputs", "uniforms", *_RESULTS)}
        return self._replace(**rows)

    def samples(self, part: slice) -> "Block":
        """Return the part of the block for some samples; its arrays are views."""
        columns = {name: getattr(self, name)[:, part] for name in ("uniforms", *_RESULTS)}
        return self._replace(**columns)


_RESULTS = ("tokens", "log_probabilities", "entropies")


@kept_on_disk
@njit(nogil=True, error_model="numpy")
def run(program: Program, memory: Memory, block: Block, position: int, loaded_at: int, team: Team) -> int:
    """Generate the samples of a block, as one thread of a team; each thread computes its shard of the features.

    The threads stop early after a sample with too many long waits, because then they do not have a core each.

    Args:
        program: the flattened model.
        memory: memory of all threads.
        block: samples to generate; the first thread writes the results.
        position: number of samples processed so far.
        loaded_at: position at which a state was loaded.
        team: the threads and their barrier.

    Returns:
        the number of generated samples.
    """
    n_streams, count = block.uniforms.shape
    probabilities = np.empty(program.num_tokens, dtype=np.float64)
    own = _memory_of_thread(memory, team.thread)
    if team.thread > 0:
        own.buffers[:] = memory.buffers[0]
    tokens, sample = block.inputs.copy(), 0
    wait(team)
    while sample < count and not separation_requested(team.counters):
        half = _step(tokens, program, own, position + sample, loaded_at, team)
        logits = own.partials[half, 0]
        for stream in range(n_streams):
            token, log_probability, entropy = sample_token(
                logits[stream, : program.num_tokens],
                block.uniforms[stream, sample],
                block.temperature,
                block.top_k,
                block.top_p,
                probabilities,
            )
            tokens[stream] = token
            if team.thread == 0:
                block.tokens[stream, sample] = token
                block.log_probabilities[stream, sample] = log_probability
                block.entropies[stream, sample] = entropy
        sample += 1
    if team.thread == 0:
        block.inputs[:] = tokens
    return sample


@njit(nogil=True)
def _memory_of_thread(memory: Memory, thread: int) -> Memory:
    """Return the memory of one thread, without the axis of threads."""
    return Memory(
        memory.states,
        memory.spans,
        memory.partials,
        memory.buffers[thread],
        memory.x[thread],
        memory.normed[thread],
        memory.hidden[thread],
        memory.scratch[thread],
    )


@compiled
def _step(tokens: np.ndarray, program: Program, memory: Memory, position: int, loaded_at: int, team: Team) -> int:
    """Compute the logits after the inputs ``tokens`` (streams,); return the half of ``partials`` that contains them."""
    width, num_tokens, head = program.widths[0], program.num_tokens, program.head
    waits, long_waits = wait_count(team), long_wait_count(team)
    embed(tokens, width, program.weights, program.embedding, memory.x)
    index = 0
    while index < program.operations.size:
        index = _execute(index, program, memory, position, loaded_at, team)
    norm(memory.x, 0, width, True, program.weights, head, memory.normed)
    half = wait_count(team) & 1
    output = Map(program.head_map, head + 2 * whole_vectors(width), width, num_tokens)
    outputs = shard_range(num_tokens, team.thread, team.n_threads)
    normed, logits = Columns(memory.normed, 0), Columns(memory.partials[half, 0], 0)
    linear(program.maps, program.weights, output, outputs, normed, logits, False)
    waits, long_waits = wait_count(team) - waits, long_wait_count(team) - long_waits
    if team.thread == 0 and long_waits > _LONG_WAITS + waits // _WAITS_PER_LONG_WAIT:
        request_separation(team.counters)
    wait(team)
    return half


@compiled
def _execute(index: int, program: Program, memory: Memory, position: int, loaded_at: int, team: Team) -> int:
    """Execute one operation and return the index of the next one.

    Each thread keeps all features in ``x`` and ``buffers``. In ``hidden`` it computes only its shard of the features,
    until the partial sums of all threads are added.
    """
    operation = program.operations[index]
    kind, at, width, place = operation.kind, program.starts[operation.stage], operation.width, operation.memory
    stride = program.strides[operation.stage]
    if kind == Kind.S4_NPLR or kind == Kind.S4_DIAGONAL:
        _s4_layer(operation, at, program, memory, position // stride - loaded_at // stride, team)
    elif kind == Kind.FEED_FORWARD:
        _feed_forward(operation, at, program, memory, team)
    elif kind == Kind.SAVE:
        copy(memory.x, at, width, memory.buffers, place)
    elif kind == Kind.ADD:
        add(memory.x, at, width, memory.buffers, place)
    else:
        pool, slot = operation.pool, position // stride % operation.pool
        if kind == Kind.DOWN:
            copy_to_frame(memory.x, at, width, memory.buffers, place, pool, slot)
            if slot < pool - 1:
                return operation.next_if_incomplete
            frame, below = Columns(memory.buffers, place), Columns(memory.x, program.starts[operation.stage + 1])
            linear_map = Map(operation.maps, operation.weights, width * pool, operation.inner)
            _shared_linear(program, linear_map, frame, below, False, memory.partials, team)
        elif kind == Kind.UP:
            below = Columns(memory.x, program.starts[operation.stage + 1])
            linear_map = Map(operation.maps, operation.weights, operation.inner, width * pool)
            _shared_linear(program, linear_map, below, Columns(memory.hidden, 0), False, memory.partials, team)
        else:
            add_from_frame(memory.x, at, width, memory.buffers, place, pool, slot)
            if slot == pool - 1:
                copy(memory.hidden, 0, width * pool, memory.buffers, place)
    return index + 1


@compiled
def _s4_layer(operation: Operation, at: int, program: Program, memory: Memory, samples: int, team: Team) -> None:
    """Compute x += GLU(W · GELU(state space(norm(x))) + b)."""
    width, layer_norm = operation.width, operation.layer_norm == 1
    norm(memory.x, at, width, layer_norm, program.weights, operation.weights, memory.normed)
    first, last = shard_range(width, team.thread, team.n_threads)
    after_norm = operation.weights + 2 * whole_vectors(width if layer_norm else 1)
    constants = state_space_step(operation, program.weights, after_norm, memory, samples, first, last)
    gelu(memory.hidden, first, last)
    values, gates = whole_vectors(width), 2 * whole_vectors(width)
    source, target = Columns(memory.hidden, 0), Columns(memory.hidden, values)
    output = Map(operation.maps, constants, width, gates)
    _shared_linear(program, output, source, target, False, memory.partials, team)
    add_gated(memory.x, at, width, memory.hidden, values, gates)


@compiled
def _feed_forward(operation: Operation, at: int, program: Program, memory: Memory, team: Team) -> None:
    """Compute x += W₂ · GELU(W₁ · norm(x) + b₁) + b₂."""
    width, inner, layer_norm = operation.width, operation.inner, operation.layer_norm == 1
    norm(memory.x, at, width, layer_norm, program.weights, operation.weights, memory.normed)
    first, last = shard_range(inner, team.thread, team.n_threads)
    constants = operation.weights + 2 * whole_vectors(width if layer_norm else 1)
    normed, hidden = Columns(memory.normed, 0), Columns(memory.hidden, 0)
    into = Map(operation.maps, constants, width, inner)
    linear(program.maps, program.weights, into, (first, last), normed, hidden, False)
    gelu(memory.hidden, first, last)
    back = Map(operation.maps + map_size(width, inner), constants + constants_size(inner), inner, width)
    _shared_linear(program, back, hidden, Columns(memory.x, at), True, memory.partials, team)


@compiled
def _shared_linear(
    program: Program,
    linear_map: Map,
    source: Columns,
    target: Columns,
    added: bool,
    all_partials: np.ndarray,
    team: Team,
) -> None:
    """Compute :func:`linear` of a map that is split by inputs; each thread has its shard of the inputs in ``source``.

    Every thread receives the whole result. The partial sums are double-buffered: a thread that is ahead writes to the
    other half, and writes to the first half again only after all threads have read it.
    """
    maps, weights, shards = program.maps, program.weights, all_partials.shape[1]
    begin, constants, n_in, n_out = linear_map
    if shards == 1:
        linear(maps, weights, linear_map, (0, n_out), source, target, added)
        return
    partials = all_partials[wait_count(team) & 1]
    for shard in range(shards):
        first, last = shard_range(n_in, shard, shards)
        if shard % team.n_threads == team.thread:
            own, inputs = Map(begin, constants, last - first, n_out), Columns(source.values, source.first + first)
            linear(maps, weights, own, (0, n_out), inputs, Columns(partials[shard], 0), False)
        begin += map_size(last - first, n_out)
        constants += constants_size(n_out)
    wait(team)
    sum_partials(partials, target.values, target.first, n_out, added)
