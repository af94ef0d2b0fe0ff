"""State spaces of a step: a feature's states are moved and read out in two passes over its vectors.

Of each feature, real and imaginary parts of a, b, C and of u and v if the system is NPLR lie side by side in the
weights, C and v times two; of each feature and stream, the real parts of the state and the imaginary ones in the
states. All are filled up to whole vectors with zeros, which stay zeros.
"""

from collections.abc import Callable
from typing import Any

from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from sashimi_diffusion.generation.numba_engine.vectors import LANES, STREAMS, Vectors, index

_OPTIONS = {"nogil": True, "fastmath": True, "error_model": "numpy"}


@njit(**_OPTIONS)
def state_step(nplr, weights, begin, skip, n, states, offset, first, last, u, y):
    """One step of the state spaces of some features: inputs ``u``, outputs ``y`` (streams, features), ``states`` moved.

    ``n`` counts whole vectors' worth of states, ``skip`` is where D begins.
    """
    n_streams, size = u.shape[0], (10 if nplr else 6) * n
    ahead = 2 * n * n_streams  # to the next feature's states
    for feature in range(first, last):
        at, gain = begin + feature * size, weights[skip + feature]
        stream = 0
        while stream < n_streams:
            place = (offset + feature * 2 * n) * n_streams + stream * 2 * n
            if stream + STREAMS <= n_streams:
                if nplr:
                    _nplr_of_four(weights, at, n, states, place, ahead, u, y, stream, feature, gain)
                else:
                    _diagonal_of_four(weights, at, n, states, place, ahead, u, y, stream, feature, gain)
                stream += STREAMS
            else:
                if nplr:
                    _nplr_of_one(weights, at, n, states, place, ahead, u, y, stream, feature, gain)
                else:
                    _diagonal_of_one(weights, at, n, states, place, ahead, u, y, stream, feature, gain)
                stream += 1


def _feature_step(nplr: bool, n_streams: int) -> Callable:
    """x ← a x + b u[stream, feature] - u (v · x) and y[stream, feature] = C x + gain · u[stream, feature]."""

    def typed(
        context: Any,
        weights: Any,
        begin: Any,
        n: Any,
        states: Any,
        place: Any,
        ahead: Any,
        u: Any,
        y: Any,
        stream: Any,
        feature: Any,
        gain: Any,
    ) -> tuple:
        number = types.intp
        signature = types.void(weights, number, number, states, number, number, u, y, number, number, types.float32)
        return signature, lambda *compiling: _emit(nplr, n_streams, *compiling)

    return intrinsic(typed)


def _emit(nplr: bool, n_streams: int, context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    emit = Vectors(context, builder, signature, arguments)
    _, begin, n, _, place, ahead, _, _, stream, feature, gain = arguments
    weights, state = emit.pointer(0, begin), emit.pointer(3, place)
    rows = [builder.add(stream, index(s)) for s in range(n_streams)]
    inputs = [emit.number(emit.pointer(6, row, feature), index(0)) for row in rows]
    signals = [emit.everywhere(number) for number in inputs]

    def parameter(which: int, i: Any) -> Any:
        return emit.load(weights, builder.add(builder.mul(n, index(which)), i))

    def places(s: int, i: Any) -> tuple[Any, Any]:
        """Where the real and the imaginary parts of a stream's states are."""
        real = builder.add(builder.mul(n, index(2 * s)), i)
        return real, builder.add(real, n)

    def inner_products() -> list[Any]:
        totals = [emit.total() for _ in range(n_streams)]
        with cgutils.for_range_slice(builder, index(0), n, index(LANES)) as (i, _):
            v_real, v_imag = parameter(8, i), parameter(9, i)
            for s, total in enumerate(totals):
                real, imag = (emit.load(state, part) for part in places(s, i))
                value = emit.multiply_add(v_real, real, builder.load(total))
                builder.store(emit.multiply_subtract(v_imag, imag, value), total)
        return [emit.everywhere(total) for total in emit.sums([builder.load(total) for total in totals])]

    inner = inner_products() if nplr else None
    outputs = [emit.total() for _ in range(n_streams)]
    with cgutils.for_range_slice(builder, index(0), n, index(LANES)) as (i, _):
        a_real, a_imag, b_real, b_imag, c_real, c_imag = (parameter(which, i) for which in range(6))
        u_real, u_imag = (parameter(6, i), parameter(7, i)) if nplr else (None, None)
        for s, (signal, output) in enumerate(zip(signals, outputs, strict=True)):
            at_real, at_imag = places(s, i)
            x_real, x_imag = emit.load(state, at_real), emit.load(state, at_imag)
            # Those of many streams fill a page of memory, beyond which the processor does not read ahead by itself.
            emit.prefetch(state, builder.add(at_real, ahead))
            emit.prefetch(state, builder.add(at_imag, ahead))
            real, imag = emit.multiply(b_real, signal), emit.multiply(b_imag, signal)
            if nplr:
                real = emit.multiply_subtract(u_real, inner[s], real)
                imag = emit.multiply_subtract(u_imag, inner[s], imag)
            real = emit.multiply_subtract(a_imag, x_imag, emit.multiply_add(a_real, x_real, real))
            imag = emit.multiply_add(a_imag, x_real, emit.multiply_add(a_real, x_imag, imag))
            emit.store(real, state, at_real)
            emit.store(imag, state, at_imag)
            value = emit.multiply_add(c_real, real, builder.load(output))
            builder.store(emit.multiply_subtract(c_imag, imag, value), output)
    for row, number, total in zip(rows, inputs, emit.sums([builder.load(output) for output in outputs]), strict=True):
        builder.store(emit.multiply_add(gain, number, total), emit.pointer(7, row, feature))
    return context.get_dummy_value()


_nplr_of_one, _nplr_of_four = _feature_step(True, 1), _feature_step(True, STREAMS)
_diagonal_of_one, _diagonal_of_four = _feature_step(False, 1), _feature_step(False, STREAMS)
