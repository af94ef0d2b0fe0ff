"""Vector instructions for the innermost loops, written in LLVM's own language.

numba keeps sums over a loop in memory and tests whether arrays overlap before it uses vectors; this does neither.
"""

import math
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import cgutils
from numba.extending import register_jitable

LANES = 16
STREAMS = 4
"""Streams that share each weight once it is read."""
GROUPS = 2
"""Vectors of outputs that share each input once it is read."""

_VECTOR = ir.VectorType(ir.FloatType(), LANES)
_INDEX, _LANE = ir.IntType(64), ir.IntType(32)
_ZEROS = ir.Constant(_VECTOR, [0.0] * LANES)
_FAST = ("contract", "nsz")


@register_jitable
def whole_vectors(n: int) -> int:
    """``n`` numbers, with those that fill the last vector."""
    return (n + LANES - 1) // LANES * LANES


def aligned_zeros(*shape: int) -> np.ndarray:
    """A float32 array whose first number begins a vector's place in the cache: others are read in two halves."""
    size = math.prod(shape)
    numbers = np.zeros(size + LANES, dtype=np.float32)
    first = -numbers.ctypes.data // numbers.itemsize % LANES
    return numbers[first : first + size].reshape(shape)


def index(number: int) -> Any:
    """A position in an array."""
    return _INDEX(number)


class Vectors:
    """Emits instructions on vectors of ``LANES`` float32 numbers into the function that is being compiled.

    Args:
        context, builder, signature, arguments: what numba hands an intrinsic.
    """

    def __init__(self, context: Any, builder: Any, signature: Any, arguments: Any) -> None:
        self._context, self.builder = context, builder
        self._types, self._arguments = signature.args, arguments

    def pointer(self, argument: int, *position: Any) -> Any:
        """The address of an element of the array that is argument number ``argument``."""
        array_type = self._types[argument]
        array = self._context.make_array(array_type)(self._context, self.builder, self._arguments[argument])
        return cgutils.get_item_pointer(self._context, self.builder, array_type, array, list(position))

    def load(self, pointer: Any, offset: Any) -> Any:
        """The vector that begins ``offset`` numbers after ``pointer``."""
        return self.builder.load(self._vector_pointer(pointer, offset), align=4)

    def store(self, vector: Any, pointer: Any, offset: Any) -> None:
        """Write a vector there."""
        self.builder.store(vector, self._vector_pointer(pointer, offset), align=4)

    def number(self, pointer: Any, offset: Any) -> Any:
        """The number there."""
        return self.builder.load(self.builder.gep(pointer, [offset]))

    def everywhere(self, number: Any) -> Any:
        """A vector of one number."""
        undefined = ir.Constant(_VECTOR, ir.Undefined)
        first = self.builder.insert_element(undefined, number, _LANE(0))
        return self.builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_LANE, LANES), [0] * LANES))

    def total(self) -> Any:
        """A vector of zeros to add to, which LLVM keeps in a register."""
        return cgutils.alloca_once_value(self.builder, _ZEROS)

    def add_product(self, total: Any, x: Any, y: Any) -> None:
        """total += x · y."""
        self.builder.store(self.multiply_add(x, y, self.builder.load(total)), total)

    def subtract_product(self, total: Any, x: Any, y: Any) -> None:
        """total -= x · y."""
        self.builder.store(self.multiply_subtract(x, y, self.builder.load(total)), total)

    def clear(self, total: Any) -> None:
        """total = 0."""
        self.builder.store(_ZEROS, total)

    def multiply_add(self, x: Any, y: Any, z: Any) -> Any:
        """x · y + z, rounded once where the machine can."""
        return self.builder.fadd(self.builder.fmul(x, y, flags=_FAST), z, flags=_FAST)

    def multiply_subtract(self, x: Any, y: Any, z: Any) -> Any:
        """z - x · y."""
        return self.builder.fsub(z, self.builder.fmul(x, y, flags=_FAST), flags=_FAST)

    def multiply(self, x: Any, y: Any) -> Any:
        """x · y."""
        return self.builder.fmul(x, y, flags=_FAST)

    def sum(self, vectors: list[Any]) -> Any:
        """The sum of some vectors, pairs first."""
        while len(vectors) > 1:
            pairs = zip(vectors[::2], vectors[1::2], strict=False)
            vectors = [self.builder.fadd(*pair, flags=_FAST) for pair in pairs] + vectors[len(vectors) // 2 * 2 :]
        return vectors[0]

    def where(self, condition: Any, vector: Any) -> Any:
        """The vector if the condition holds, zeros otherwise."""
        return self.builder.select(condition, vector, _ZEROS)

    def _vector_pointer(self, pointer: Any, offset: Any) -> Any:
        return self.builder.bitcast(self.builder.gep(pointer, [offset]), _VECTOR.as_pointer())
