"""Vector instructions for the innermost loops, emitted as LLVM instructions.

For the same loops in Python, numba would keep accumulators in memory and test whether arrays overlap before it uses
vectors. The emitted instructions avoid both.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import register_jitable

LANES = 16
"""Float32 numbers in a vector of 64 bytes."""
STREAMS = 4
"""Number of streams that use a vector of weights each time it is loaded."""
GROUPS = 2
"""Number of vectors of outputs that use an input each time it is loaded."""
SPAN = 16
"""Samples between two updates of the states of a state space."""
_LINE = 64  # bytes of a cache line

# Without _nrt=False, every call of a function changes the atomic reference counts of all arrays in its arguments, which
# is slow; see README.md.
_OPTIONS: Any = {"nogil": True, "error_model": "numpy", "_nrt": False}
compiled: Any = njit(**_OPTIONS)
"""Decorator that compiles a function that does not allocate arrays."""
fast_math: Any = njit(fastmath=True, **_OPTIONS)
"""The same for a function in which the compiler may reorder sums."""

_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_INDEX, _LANE = ir.IntType(64), ir.IntType(32)
_ZEROS = ir.Constant(_VECTOR, [0.0] * LANES)
_INTEGERS = ir.VectorType(ir.IntType(32), LANES)
_SIXTEEN = ir.Constant(_INTEGERS, [16] * LANES)
_FAST = ("contract", "nsz")


@register_jitable
def whole_vectors(n: Any) -> Any:
    """Return ``n``, an integer or an array of integers, rounded up to a multiple of ``LANES``."""
    return (n + LANES - 1) // LANES * LANES


def aligned_zeros(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    """Return an array at an address that is a multiple of 64; each vector is then within one cache line."""
    size, line = math.prod(shape), _LINE // np.dtype(dtype).itemsize
    numbers = np.zeros(size + line, dtype=dtype)
    first = -numbers.ctypes.data // numbers.itemsize % line
    return numbers[first : first + size].reshape(shape)


def index(number: int) -> Any:
    """Return a constant index of an array."""
    return _INDEX(number)


class Vectors:
    """Emitter of instructions on vectors of ``LANES`` float32 numbers into the function that numba compiles.

    Args:
        context, builder, signature, arguments: the arguments that numba passes to the code generator of an intrinsic.
    """

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        self._context, self.builder = context, builder
        self._types, self._arguments = signature.args, arguments

    def pointer(self, argument: int, *position: Any) -> Any:
        """Return the address of an element of the array that is argument number ``argument``."""
        array_type = self._types[argument]
        array = self._context.make_array(array_type)(self._context, self.builder, self._arguments[argument])
        return cgutils.get_item_pointer(self._context, self.builder, array_type, array, list(position))

    def load(self, pointer: Any, offset: Any) -> Any:
        """Load the vector that begins ``offset`` numbers after ``pointer``."""
        return self.builder.load(self._vector_pointer(pointer, offset), align=4)

    def load_weights(self, argument: int, pointer: Any, offset: Any) -> Any:
        """Load a vector as :meth:`load` does, from the array that is argument number ``argument``, as float32 numbers.

        A uint16 number has the bits of a bfloat16 number, which are the upper half of a float32 number. int16 and int8
        numbers are converted.
        """
        stored = self._types[argument].dtype
        if stored == types.float32:
            return self.load(pointer, offset)
        narrow = ir.VectorType(ir.IntType(stored.bitwidth), LANES).as_pointer()
        place = self.builder.bitcast(self.builder.gep(pointer, [offset]), narrow)
        vector = self.builder.load(place, align=stored.bitwidth // 8)
        if stored == types.uint16:
            return self.builder.bitcast(self.builder.shl(self.builder.zext(vector, _INTEGERS), _SIXTEEN), _VECTOR)
        return self.builder.sitofp(self.builder.sext(vector, _INTEGERS), _VECTOR)

    def store(self, vector: Any, pointer: Any, offset: Any) -> None:
        """Store a vector ``offset`` numbers after ``pointer``."""
        self.builder.store(vector, self._vector_pointer(pointer, offset), align=4)

    def load_scalar(self, pointer: Any, offset: Any) -> Any:
        """Load the number ``offset`` numbers after ``pointer``."""
        return self.builder.load(self.builder.gep(pointer, [offset]))

    def broadcast(self, number: Any) -> Any:
        """Return a vector with ``number`` in every lane."""
        undefined = ir.Constant(_VECTOR, ir.Undefined)
        first = self.builder.insert_element(undefined, number, _LANE(0))
        return self.builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_LANE, LANES), [0] * LANES))

    def accumulator(self) -> Any:
        """Return a vector variable with initial value zero; LLVM keeps it in a register."""
        return cgutils.alloca_once_value(self.builder, _ZEROS)

    def add_product(self, accumulator: Any, x: Any, y: Any) -> None:
        """Emit accumulator += x · y."""
        self.builder.store(self.multiply_add(x, y, self.builder.load(accumulator)), accumulator)

    def subtract_product(self, accumulator: Any, x: Any, y: Any) -> None:
        """Emit accumulator -= x · y."""
        self.builder.store(self.multiply_subtract(x, y, self.builder.load(accumulator)), accumulator)

    def clear(self, accumulator: Any) -> None:
        """Emit accumulator = 0."""
        self.builder.store(_ZEROS, accumulator)

    def multiply_add(self, x: Any, y: Any, z: Any) -> Any:
        """Return x · y + z, a fused operation where the machine has one."""
        return self.builder.fadd(self.builder.fmul(x, y, flags=_FAST), z, flags=_FAST)

    def multiply_subtract(self, x: Any, y: Any, z: Any) -> Any:
        """Return z - x · y, a fused operation where the machine has one."""
        return self.builder.fsub(z, self.builder.fmul(x, y, flags=_FAST), flags=_FAST)

    def multiply(self, x: Any, y: Any) -> Any:
        """Return x · y."""
        return self.builder.fmul(x, y, flags=_FAST)

    def sum(self, vectors: list[Any]) -> Any:
        """Return the sum of vectors, added in pairs."""
        while len(vectors) > 1:
            pairs = zip(vectors[::2], vectors[1::2], strict=False)
            vectors = [self.builder.fadd(*pair, flags=_FAST) for pair in pairs] + vectors[len(vectors) // 2 * 2 :]
        return vectors[0]

    def select(self, condition: Any, vector: Any) -> Any:
        """Return the vector if the condition holds, zeros otherwise."""
        return self.builder.select(condition, vector, _ZEROS)

    def _vector_pointer(self, pointer: Any, offset: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(pointer, [offset]), _VECTOR.as_pointer())
