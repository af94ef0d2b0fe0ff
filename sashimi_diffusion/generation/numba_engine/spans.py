"""State spaces over a span of samples: what is compiled for a vector of features.

A pass over the states of LANES features is a loop over their N states. These and the parameters lie in the order in
which they are read, and stay in the innermost cache from one sample of the span to the next. Where a system is NPLR, a
pass also sums up the inner product v · x that the next one begins with.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from sashimi_diffusion.generation.numba_engine.vectors import LANES, Vectors, index, whole_vectors

SPAN = 16
"""Samples of a span."""
TOGETHER = 4
"""Streams that share the parameters once they are read."""

_Complex = tuple[Any, Any]


@register_jitable
def parameters_size(nplr: bool, width: int, n: int) -> int:
    """Numbers that the parameters of ``width`` features with ``n`` states each take, the kernel not counted."""
    return (10 if nplr else 6) * n * whole_vectors(width)


def span_beginning(nplr: bool, n_streams: int) -> Callable:
    """A compiled function: states absorb the inputs of a span, and what they give to the next one takes their place.

    Its arguments: the weights, and where the parameters of the features begin; N; the states, and where those of the
    first stream begin; the spans, and where that of the first stream begins; whether there are inputs to absorb; memory
    for the states of the streams.
    """

    def typed(
        context: Any,
        weights: Any,
        begin: Any,
        n: Any,
        states: Any,
        place: Any,
        spans: Any,
        span: Any,
        absorbing: Any,
        scratch: Any,
    ) -> tuple:
        number, truth = types.intp, types.boolean
        signature = types.void(weights, number, number, states, number, spans, number, truth, scratch)
        return signature, lambda *compiling: _emit_beginning(nplr, n_streams, *compiling)

    return intrinsic(typed)


def _emit_beginning(nplr: bool, n_streams: int, context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    emit = Vectors(context, builder, signature, arguments)
    _, begin, n, _, place, _, span, absorbing, _ = arguments
    passes = _Passes(emit, nplr, n, emit.pointer(0, begin))
    size = builder.mul(n, index(2 * LANES))
    x = [emit.pointer(3, builder.add(place, builder.mul(size, index(s)))) for s in range(n_streams)]
    copies = [emit.pointer(8, builder.mul(size, index(s))) for s in range(n_streams)]
    rows = [emit.pointer(5, builder.add(span, index(s * SPAN * LANES))) for s in range(n_streams)]

    inner = passes.inner_products(x)
    with builder.if_then(absorbing), cgutils.for_range_slice(builder, index(0), index(SPAN), index(1)) as (j, _):
        at = builder.mul(j, index(LANES))
        passes.absorb(x, inner, [emit.load(of_stream, at) for of_stream in rows])
    passes.copy(x, copies)
    with cgutils.for_range_slice(builder, index(0), index(SPAN), index(1)) as (j, _):
        at = builder.mul(j, index(LANES))
        for output, of_stream in zip(passes.give(copies, inner), rows, strict=True):
            emit.store(output, of_stream, at)
    return context.get_dummy_value()


class _Passes:
    """Emits passes over the states x of a vector of features in some streams.

    Args:
        emit: of the function that is being compiled.
        nplr: whether the systems are NPLR.
        n: states per feature.
        weights: pointer to the parameters.
    """

    def __init__(self, emit: Vectors, nplr: bool, n: Any, weights: Any) -> None:
        self._emit, self._nplr, self._n, self._weights = emit, nplr, n, weights

    def inner_products(self, x: list[Any]) -> list[Any]:
        """Memory of v · x, a vector for each stream; the other passes use and renew it."""
        inner = [self._emit.total() for _ in x]
        if self._nplr:
            with self._each_state() as i:
                v = self._parameter(4, i)
                for states, total in zip(x, inner, strict=True):
                    self._add_real_product(total, v, self._state(states, i))
        return inner

    def absorb(self, x: list[Any], inner: list[Any], inputs: list[Any]) -> None:
        """x ← Ā x + B̄ u for the inputs u of a sample."""
        self._move(x, inner, inputs, [])

    def give(self, x: list[Any], inner: list[Any]) -> list[Any]:
        """x ← Ā x; returns C x."""
        outputs = [self._emit.total() for _ in x]
        self._move(x, inner, [], outputs)
        return [self._emit.builder.load(output) for output in outputs]

    def copy(self, x: list[Any], copies: list[Any]) -> None:
        """Write the states there."""
        with self._each_state() as i:
            for source, target in zip(x, copies, strict=True):
                self._store(self._state(source, i), target, i)

    def _move(self, x: list[Any], inner: list[Any], inputs: list[Any], outputs: list[Any]) -> None:
        emit, builder = self._emit, self._emit.builder
        products = [builder.load(total) for total in inner]
        for total in inner:
            emit.clear(total)
        with self._each_state() as i:
            a = self._parameter(0, i)
            b = self._parameter(1, i) if inputs else None
            c = self._parameter(2, i) if outputs else None
            u, v = (self._parameter(3, i), self._parameter(4, i)) if self._nplr else (None, None)
            for s, states in enumerate(x):
                real, imag = self._multiplied(a, self._state(states, i))
                if b:
                    real, imag = emit.multiply_add(b[0], inputs[s], real), emit.multiply_add(b[1], inputs[s], imag)
                if u:
                    real = emit.multiply_subtract(u[0], products[s], real)
                    imag = emit.multiply_subtract(u[1], products[s], imag)
                    self._add_real_product(inner[s], v, (real, imag))
                if c:
                    self._add_real_product(outputs[s], c, (real, imag))
                self._store((real, imag), states, i)

    @contextmanager
    def _each_state(self) -> Iterator[Any]:
        with cgutils.for_range_slice(self._emit.builder, index(0), self._n, index(1)) as (i, _):
            yield i

    def _parameter(self, which: int, i: Any) -> _Complex:
        builder = self._emit.builder
        at = builder.add(builder.mul(i, index(parameters_size(self._nplr, LANES, 1))), index(2 * which * LANES))
        return self._emit.load(self._weights, at), self._emit.load(self._weights, builder.add(at, index(LANES)))

    def _state(self, states: Any, i: Any) -> _Complex:
        return tuple(self._emit.load(states, at) for at in self._places(i))

    def _store(self, values: _Complex, states: Any, i: Any) -> None:
        for value, at in zip(values, self._places(i), strict=True):
            self._emit.store(value, states, at)

    def _places(self, i: Any) -> tuple[Any, Any]:
        real = self._emit.builder.mul(i, index(2 * LANES))
        return real, self._emit.builder.add(real, index(LANES))

    def _multiplied(self, a: _Complex, x: _Complex) -> _Complex:
        emit = self._emit
        real = emit.multiply_subtract(a[1], x[1], emit.multiply(a[0], x[0]))
        return real, emit.multiply_add(a[1], x[0], emit.multiply(a[0], x[1]))

    def _add_real_product(self, total: Any, a: _Complex, x: _Complex) -> None:
        self._emit.add_product(total, a[0], x[0])
        self._emit.subtract_product(total, a[1], x[1])


@intrinsic
def convolve(
    context: Any,
    weights: Any,
    kernel: Any,
    spans: Any,
    span: Any,
    sample: Any,
    u: Any,
    y: Any,
    stream: Any,
    feature: Any,
) -> tuple:
    """y = row + Σ_{i ≤ sample} kernel[i] · u[sample - i] for a vector of features; the row then keeps u[sample]."""
    number = types.intp
    signature = types.void(weights, number, spans, number, number, u, y, number, number)
    return signature, _emit_convolution


def _emit_convolution(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    emit = Vectors(context, builder, signature, arguments)
    _, kernel, _, span, sample, _, _, stream, feature = arguments
    taps, rows = emit.pointer(0, kernel), emit.pointer(2, span)
    now = builder.mul(sample, index(LANES))
    total = cgutils.alloca_once_value(builder, emit.load(rows, now))
    emit.store(emit.load(emit.pointer(5, stream, feature), index(0)), rows, now)
    with cgutils.for_range_slice(builder, index(0), builder.add(now, index(LANES)), index(LANES)) as (at, _):
        emit.add_product(total, emit.load(taps, at), emit.load(rows, builder.sub(now, at)))
    emit.store(builder.load(total), emit.pointer(6, stream, feature), index(0))
    return context.get_dummy_value()
