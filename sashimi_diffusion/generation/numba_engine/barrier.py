"""A spin barrier for threads that run one compiled step together; they meet within a fraction of a microsecond."""

import os
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from sashimi_diffusion.generation.numba_engine.vectors import compiled

_STRIDE = 16  # int64 numbers between the counters of two threads, so that they are in different cache lines
# A wait with this many reads of the counter, about 10 microseconds, is a long one: the other thread has no core.
_LONG_WAIT = 10_000


class Team(NamedTuple):
    """The threads that run a step together, described for one of them.

    Args:
        counters: int64, shared by all threads; see :func:`create_counters`.
        thread: index of this thread.
        n_threads: number of threads.
    """

    counters: np.ndarray
    thread: int
    n_threads: int


def create_counters(n_threads: int) -> np.ndarray:
    """Return the counters of a new barrier: the waits and the long waits of each thread, and a request to separate."""
    return np.zeros(n_threads * _STRIDE, dtype=np.int64)


def _typed_store(typing_context: Any, array: Any, index: Any, value: Any) -> tuple:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature, arguments)
        builder.store_atomic(arguments[2], pointer, "release", 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.int64), generate


def _typed_load(typing_context: Any, array: Any, index: Any) -> tuple:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_pointer(context, builder, signature, arguments), "acquire", 8)

    return types.int64(array, types.intp), generate


def _typed_yield(typing_context: Any) -> tuple:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if os.name == "posix":
            function = ir.FunctionType(ir.IntType(32), [])
            builder.call(cgutils.get_or_insert_function(builder.module, function, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate


def _pointer(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Return the address of the element that the first two arguments of an intrinsic, array and index, select."""
    array_type = signature.args[0]
    array = context.make_array(array_type)(context, builder, arguments[0])
    pointer = cgutils.get_item_pointer(context, builder, array_type, array, [arguments[1]])
    return builder.bitcast(pointer, ir.IntType(64).as_pointer())


# array[index] = value; publishes everything that this thread has written before.
_store: Any = intrinsic(_typed_store)
# array[index]; makes visible everything that the writing thread had written before.
_load: Any = intrinsic(_typed_load)
# Yields this core to another thread, on systems with POSIX's sched_yield.
_yield_core: Any = intrinsic(_typed_yield)


@compiled
def wait(team: Team) -> None:
    """Wait until every thread of the team has called this function as often as this thread."""
    if team.n_threads == 1:
        return
    counters = team.counters
    count = wait_count(team) + 1
    _store(counters, team.thread * _STRIDE, count)
    for other in range(team.n_threads):
        reads = 0
        while _load(counters, other * _STRIDE) < count:
            reads += 1
            if reads == _LONG_WAIT:
                counters[team.thread * _STRIDE + 1] += 1
            if reads >= _LONG_WAIT:
                _yield_core()


@compiled
def wait_count(team: Team) -> int:
    """Return how often this thread has called :func:`wait`."""
    return team.counters[team.thread * _STRIDE]


@compiled
def long_wait_count(team: Team) -> int:
    """Return how many waits of this thread were long ones, which do not occur if every thread has a core."""
    return team.counters[team.thread * _STRIDE + 1]


@compiled
def request_separation(counters: np.ndarray) -> None:
    """Request that all threads stop working together after the next barrier."""
    counters[2] = 1  # elements 0 and 1 are the counters of the first thread


@compiled
def separation_requested(counters: np.ndarray) -> bool:
    """Return whether :func:`request_separation` was called."""
    return counters[2] != 0


def release(counters: np.ndarray) -> None:
    """End all waits for the first thread and stop all threads after the current sample, which is then invalid."""
    counters[0] = np.iinfo(np.int64).max
    request_separation(counters)
