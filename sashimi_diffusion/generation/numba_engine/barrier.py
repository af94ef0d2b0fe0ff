"""Where threads that run one compiled step together wait for each other, within a fraction of a microsecond."""

import os
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_APART = 16  # int64 numbers between two threads' counters, so that these lie in cache lines of their own
# A wait of so many looks, about 10 microseconds, is for a thread that has no core: it may be waiting for this one.
_PATIENCE = 10_000


@intrinsic
def _store(typing_context: Any, array: Any, index: Any, value: Any) -> tuple:
    """array[index] = value, visible to the other threads together with everything written before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature, arguments)
        builder.store_atomic(arguments[2], pointer, "release", 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.int64), generate


@intrinsic
def _load(typing_context: Any, array: Any, index: Any) -> tuple:
    """array[index], together with everything that its writer wrote before."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.load_atomic(_pointer(context, builder, signature, arguments), "acquire", 8)

    return types.int64(array, types.intp), generate


def _pointer(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    array_type = signature.args[0]
    array = context.make_array(array_type)(context, builder, arguments[0])
    pointer = cgutils.get_item_pointer(context, builder, array_type, array, [arguments[1]])
    return builder.bitcast(pointer, ir.IntType(64).as_pointer())


@intrinsic
def _let_others_run(typing_context: Any) -> tuple:
    """Hand this core to another thread that waits for one, where the system has POSIX's call for it."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if os.name == "posix":
            function = ir.FunctionType(ir.IntType(32), [])
            builder.call(cgutils.get_or_insert_function(builder.module, function, "sched_yield"), [])
        return context.get_dummy_value()

    return types.void(), generate


@njit(nogil=True)
def wait(counters: Any, thread: int, n_threads: int) -> None:
    """Go on when every thread has called this as often as this one."""
    if n_threads == 1:
        return
    count = waits(counters, thread) + 1
    _store(counters, thread * _APART, count)
    for other in range(n_threads):
        looks = 0
        while _load(counters, other * _APART) < count:
            looks += 1
            if looks == _PATIENCE:
                counters[thread * _APART + 1] += 1
            if looks >= _PATIENCE:
                _let_others_run()


@njit(nogil=True)
def waits(counters: Any, thread: int) -> int:
    """How often ``thread`` has called :func:`wait`."""
    return counters[thread * _APART]


@njit(nogil=True)
def long_waits(counters: Any, thread: int) -> int:
    """How many of the waits of ``thread`` were longer than one for a thread with a core of its own ever is."""
    return counters[thread * _APART + 1]


@njit(nogil=True)
def part(counters: Any) -> None:
    """Tell all threads, before a barrier, to go on alone behind it."""
    counters[2] = 1


@njit(nogil=True)
def parted(counters: Any) -> bool:
    """Whether they have been told."""
    return counters[2] != 0


def counters_size(n_threads: int) -> int:
    """How many int64 zeros the counters of so many threads begin as."""
    return n_threads * _APART


def release(counters: np.ndarray) -> None:
    """Let nobody wait for the first thread any more, and all end after this sample, which is worth nothing then."""
    counters[0] = np.iinfo(np.int64).max
    part(counters)
