"""The state spaces of a step. Their states are updated once per span of SPAN samples instead of at every sample.

Let x be the state before a span and u the inputs of the span. The output at sample j of the span is

    y[j] = C Ā^(j+1) x + Σ_{i ≤ j} k[i] u[j - i],    k[i] = C Ā^i B̄ (+ D for i = 0).

The first term does not depend on the inputs. It is computed for the whole span when the span begins, by the recurrence
without inputs. The second term needs only the first numbers of the kernel and the inputs of the span so far. When the
next span begins, the recurrence with these inputs updates the states.

A vector of features has LANES features. In ``Memory.spans`` it has one row for each of the SPAN samples. The row
contains the first term until its sample is generated, and the input of the sample afterwards. The weights of a layer
are, for each vector of features, SPAN numbers of the kernel; then for each vector and each state a, b and C, and for an
NPLR system, Ā x = a x - u Re(v · x), also u and v. C and v contain the factor 2 of the sum over conjugate pairs.

A pass over the states of a vector of features is a loop over their N states. States and parameters are stored in the
order in which the loop reads them, and stay in the innermost cache during the passes of a span. For an NPLR system a
pass also computes the inner product v · x that the next pass needs.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_jitable

from sashimi_diffusion.generation.numba_engine.memory import Memory
from sashimi_diffusion.generation.numba_engine.operations import Kind, Operation
from sashimi_diffusion.generation.numba_engine.vectors import (
    LANES,
    SPAN,
    STREAMS,
    Vectors,
    fast_math,
    index,
    whole_vectors,
)

_Complex = tuple[Any, Any]
_Accumulators = list[Any]


@register_jitable
def parameters_size(nplr: bool, width: int, n: int) -> int:
    """Return the number of parameters of ``width`` features with ``n`` states each, without the kernel."""
    return (10 if nplr else 6) * n * whole_vectors(width)


@fast_math
def state_space_step(
    operation: Operation, weights: np.ndarray, begin: int, memory: Memory, samples: int, first: int, last: int
) -> int:
    """Compute one recurrence step of the state spaces of some features, from ``memory.normed`` to ``memory.hidden``.

    Args:
        operation: an S4 layer.
        weights, begin: array with the layer's kernel and parameters, and the index of the first one.
        memory: memory of this thread.
        samples: samples that the layer has processed since its state was loaded.
        first, last: start and end of the features to compute; the start is a multiple of ``LANES``.

    Returns:
        the index of the weights after the parameters.
    """
    nplr, n, width = operation.kind == Kind.S4_NPLR, operation.inner, operation.width
    n_streams, sample = memory.normed.shape[0], samples % SPAN
    parameters = begin + SPAN * whole_vectors(width)
    for feature in range(first, last, LANES):
        span = (operation.span + feature * SPAN) * n_streams
        if sample == 0:
            at = parameters + parameters_size(nplr, feature, n)
            state = (operation.memory + feature * 2 * n) * n_streams
            _begin_spans(nplr, n, weights, at, memory, state, span, samples > 0)
        kernel = begin + feature * SPAN
        for stream in range(n_streams):
            row = span + stream * SPAN * LANES
            _convolve(weights, kernel, memory.spans, row, sample, memory.normed, memory.hidden, stream, feature)
    return parameters + parameters_size(nplr, width, n)


@fast_math
def _begin_spans(
    nplr: bool, n: int, weights: np.ndarray, begin: int, memory: Memory, state: int, span: int, has_inputs: bool
) -> None:
    """Begin a span of a vector of features in every stream: update the states and compute the first terms.

    ``begin``, ``state`` and ``span`` are the indices of its parameters, of its states and of its rows.
    """
    states, spans, scratch = memory.states, memory.spans, memory.scratch
    n_streams, stream = memory.normed.shape[0], 0
    while stream < n_streams:
        count = STREAMS if stream + STREAMS <= n_streams else 1
        if nplr and count == 1:
            _begin_nplr_span(weights, begin, n, states, state, spans, span, has_inputs, scratch)
        elif nplr:
            _begin_nplr_spans(weights, begin, n, states, state, spans, span, has_inputs, scratch)
        elif count == 1:
            _begin_diagonal_span(weights, begin, n, states, state, spans, span, has_inputs, scratch)
        else:
            _begin_diagonal_spans(weights, begin, n, states, state, spans, span, has_inputs, scratch)
        state += count * 2 * n * LANES
        span += count * SPAN * LANES
        stream += count


def _span_beginning(nplr: bool, n_streams: int) -> Any:
    """Return a compiled function that begins a span of a vector of features in ``n_streams`` streams.

    It updates the states with the inputs of the previous span and computes the first terms of the new one. Its
    arguments are the weights and the index of the parameters; N; the states and the index of the first stream's
    states; the spans and the index of the first stream's rows; whether there was a previous span; scratch memory.
    """

    def typed(
        context: Any,
        weights: Any,
        begin: Any,
        n: Any,
        states: Any,
        state: Any,
        spans: Any,
        span: Any,
        has_inputs: Any,
        scratch: Any,
    ) -> tuple[Any, Callable]:
        number, truth = types.intp, types.boolean
        signature = types.void(weights, number, number, states, number, spans, number, truth, scratch)
        return signature, lambda *compiling: _emit_beginning(nplr, n_streams, *compiling)

    return intrinsic(typed)


def _emit_beginning(nplr: bool, n_streams: int, context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Emit the code of :func:`_span_beginning`; ``arguments`` are those of its ``typed``, after the context."""
    emit = Vectors(context, builder, signature, arguments)
    _, begin, n, _, state, _, span, has_inputs, _ = arguments
    passes = _Passes(emit, nplr, n, emit.pointer(0, begin))
    size = builder.mul(n, index(2 * LANES))
    x = [emit.pointer(3, builder.add(state, builder.mul(size, index(s)))) for s in range(n_streams)]
    copies = [emit.pointer(8, builder.mul(size, index(s))) for s in range(n_streams)]
    rows = [emit.pointer(5, builder.add(span, index(s * SPAN * LANES))) for s in range(n_streams)]

    inner = passes.inner_products(x)
    with builder.if_then(has_inputs), cgutils.for_range_slice(builder, index(0), index(SPAN), index(1)) as (j, _):
        at = builder.mul(j, index(LANES))
        passes.step_with_inputs(x, inner, [emit.load(of_stream, at) for of_stream in rows])
    passes.copy(x, copies)
    with cgutils.for_range_slice(builder, index(0), index(SPAN), index(1)) as (j, _):
        at = builder.mul(j, index(LANES))
        for output, of_stream in zip(passes.step_with_outputs(copies, inner), rows, strict=True):
            emit.store(output, of_stream, at)
    return context.get_dummy_value()


class _Passes:
    """Emitter of passes over the states x of a vector of features in some streams.

    Args:
        emit: emitter of instructions into the function that numba compiles.
        nplr: whether the systems are NPLR.
        n: number of complex states of a feature.
        weights: pointer to the parameters.
    """

    def __init__(self, emit: Vectors, nplr: bool, n: Any, weights: Any) -> None:
        self._emit, self._nplr, self._n, self._weights = emit, nplr, n, weights

    def inner_products(self, x: list[Any]) -> list[_Accumulators]:
        """Return accumulators with Re(v · x), for each stream; the other passes read and update them."""
        inner = [self._accumulators(len(x)) for _ in x]
        if self._nplr:
            with self._each_state() as i:
                v = self._parameter(4, i)
                for states, accumulators in zip(x, inner, strict=True):
                    self._add_real_product(accumulators, v, self._state(states, i))
        return inner

    def step_with_inputs(self, x: list[Any], inner: list[_Accumulators], inputs: list[Any]) -> None:
        """Emit x ← Ā x + B̄ u for the inputs u of a sample."""
        self._step(x, inner, inputs, [])

    def step_with_outputs(self, x: list[Any], inner: list[_Accumulators]) -> list[Any]:
        """Emit x ← Ā x and return Re(C x), a vector for each stream."""
        outputs = [self._accumulators(len(x)) for _ in x]
        self._step(x, inner, [], outputs)
        return [self._sum(output) for output in outputs]

    def copy(self, x: list[Any], copies: list[Any]) -> None:
        """Emit a copy of the states."""
        with self._each_state() as i:
            for source, target in zip(x, copies, strict=True):
                self._store(self._state(source, i), target, i)

    def _step(self, x: list[Any], inner: list[_Accumulators], inputs: list[Any], outputs: list[_Accumulators]) -> None:
        """Emit x ← Ā x, plus B̄ u if there are inputs u; add Re(C x) of the new x to the outputs if there are any."""
        emit = self._emit
        products = [self._sum(accumulators) for accumulators in inner]
        for accumulators in inner:
            for accumulator in accumulators:
                emit.clear(accumulator)
        with self._each_state() as i:
            a = self._parameter(0, i)
            b = self._parameter(1, i) if inputs else None
            c = self._parameter(2, i) if outputs else None
            low_rank = (self._parameter(3, i), self._parameter(4, i)) if self._nplr else None
            for s, states in enumerate(x):
                real, imag = self._multiply(a, self._state(states, i))
                if b:
                    real, imag = emit.multiply_add(b[0], inputs[s], real), emit.multiply_add(b[1], inputs[s], imag)
                if low_rank:
                    u, v = low_rank
                    real = emit.multiply_subtract(u[0], products[s], real)
                    imag = emit.multiply_subtract(u[1], products[s], imag)
                    self._add_real_product(inner[s], v, (real, imag))
                if c:
                    self._add_real_product(outputs[s], c, (real, imag))
                self._store((real, imag), states, i)

    @contextmanager
    def _each_state(self) -> Iterator[Any]:
        """Emit a loop over the states; the body of the with statement emits the body of the loop."""
        with cgutils.for_range_slice(self._emit.builder, index(0), self._n, index(1)) as (i, _):
            yield i

    def _parameter(self, which: int, i: Any) -> _Complex:
        """Load a, b, C, u or v (``which`` from 0 to 4) of state i."""
        builder = self._emit.builder
        at = builder.add(builder.mul(i, index(parameters_size(self._nplr, LANES, 1))), index(2 * which * LANES))
        return self._emit.load(self._weights, at), self._emit.load(self._weights, builder.add(at, index(LANES)))

    def _state(self, states: Any, i: Any) -> _Complex:
        real, imag = self._places(i)
        return self._emit.load(states, real), self._emit.load(states, imag)

    def _store(self, values: _Complex, states: Any, i: Any) -> None:
        for value, at in zip(values, self._places(i), strict=True):
            self._emit.store(value, states, at)

    def _places(self, i: Any) -> tuple[Any, Any]:
        """Return the offsets of the real and the imaginary part of state i."""
        real = self._emit.builder.mul(i, index(2 * LANES))
        return real, self._emit.builder.add(real, index(LANES))

    def _multiply(self, a: _Complex, x: _Complex) -> _Complex:
        emit = self._emit
        real = emit.multiply_subtract(a[1], x[1], emit.multiply(a[0], x[0]))
        return real, emit.multiply_add(a[1], x[0], emit.multiply(a[0], x[1]))

    def _accumulators(self, n_streams: int) -> _Accumulators:
        """Return the accumulators of real products.

        A single stream has one for each of their two terms, whose sums do not wait for each other. The sums of several
        streams do not wait either.
        """
        return [self._emit.accumulator() for _ in range(2 if n_streams == 1 else 1)]

    def _sum(self, accumulators: _Accumulators) -> Any:
        return self._emit.sum([self._emit.builder.load(accumulator) for accumulator in accumulators])

    def _add_real_product(self, accumulators: _Accumulators, a: _Complex, x: _Complex) -> None:
        """Emit the addition of Re(a x) to the sum of accumulators."""
        self._emit.add_product(accumulators[0], a[0], x[0])
        self._emit.subtract_product(accumulators[-1], a[1], x[1])


def _typed_convolution(
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
) -> tuple[Any, Callable]:
    """Return the signature and the code of y = row + Σ_{i ≤ sample} kernel[i] · u[sample - i]; then row = u[sample].

    All are vectors of features; row is row ``sample`` of the span.
    """
    number = types.intp
    signature = types.void(weights, number, spans, number, number, u, y, number, number)
    return signature, _emit_convolution


def _emit_convolution(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    """Emit the code of :func:`_typed_convolution`."""
    emit = Vectors(context, builder, signature, arguments)
    _, kernel, _, span, sample, _, _, stream, feature = arguments
    taps, rows = emit.pointer(0, kernel), emit.pointer(2, span)
    now = builder.mul(sample, index(LANES))
    accumulator = cgutils.alloca_once_value(builder, emit.load(rows, now))
    emit.store(emit.load(emit.pointer(5, stream, feature), index(0)), rows, now)
    with cgutils.for_range_slice(builder, index(0), builder.add(now, index(LANES)), index(LANES)) as (at, _):
        emit.add_product(accumulator, emit.load(taps, at), emit.load(rows, builder.sub(now, at)))
    emit.store(builder.load(accumulator), emit.pointer(6, stream, feature), index(0))
    return context.get_dummy_value()


_convolve: Any = intrinsic(_typed_convolution)
_begin_nplr_span, _begin_nplr_spans = _span_beginning(True, 1), _span_beginning(True, STREAMS)
_begin_diagonal_span, _begin_diagonal_spans = _span_beginning(False, 1), _span_beginning(False, STREAMS)
