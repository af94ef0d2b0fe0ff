"""Where threads that run one compiled step together wait for each other, within a fraction of a microsecond."""

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

_APART = 16  # int64 numbers between two threads' counters, so that these lie in cache lines of their own


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


@njit(nogil=True)
def wait(counters: Any, thread: int, n_threads: int, count: int) -> None:
    """Go on when every thread has called this for the ``count``-th time."""
    if n_threads == 1:
        return
    _store(counters, thread * _APART, count)
    for other in range(n_threads):
        while _load(counters, other * _APART) < count:
            pass


def counters_size(n_threads: int) -> int:
    """How many int64 zeros the counters of so many threads begin as."""
    return n_threads * _APART
