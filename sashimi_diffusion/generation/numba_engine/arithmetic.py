"""The arithmetic of a step, compiled: linear maps, norms, state spaces, gates. Streams are rows, features side by side.

Inner loops run over slices with one array written and few read: that is what LLVM turns into vector instructions.
"""

import numpy as np
from numba import njit

_OPTIONS = {"nogil": True, "fastmath": True, "error_model": "numpy"}
_ONE, _HALF = np.float32(1), np.float32(0.5)
_LAYER_NORM_EPSILON, _SCALAR_NORM_EPSILON = np.float32(1e-5), np.float32(1e-8)
_INVERSE_ROOT_OF_TWO = np.float32(0.7071067811865476)

# Rational fits of erf(x)/x and tanh(x)/x in x², by reweighted least squares at Chebyshev nodes of [0, 16] and [0, 81];
# in float32 within 4e-7 everywhere.
_ERF = tuple(
    np.float32(c)
    for c in (
        *(1.12837909, 0.207126923, 0.051525198, 0.00399060029, 0.000147283345, -1.94223461e-06, 1.91098276e-08),
        *(0.516892709, 0.117971505, 0.0149582205, 0.0010211049),
    )
)
_TANH = tuple(
    np.float32(c)
    for c in (
        *(0.99999998, 0.13381024, 0.00349558572, 2.0609028e-05, 1.3354566e-08),
        *(0.467143397, 0.0258769743, 0.000328563019, 7.77652317e-07),
    )
)
_E0, _E1, _E2, _E3, _E4, _E5, _E6, _E7, _E8, _E9, _E10 = _ERF
_T0, _T1, _T2, _T3, _T4, _T5, _T6, _T7, _T8 = _TANH


@njit(**_OPTIONS)
def erf(x):
    """Error function of a float32 number."""
    x = min(max(x, np.float32(-4)), np.float32(4))
    t = x * x
    numerator = _E0 + t * (_E1 + t * (_E2 + t * (_E3 + t * (_E4 + t * (_E5 + t * _E6)))))
    return x * numerator / (_ONE + t * (_E7 + t * (_E8 + t * (_E9 + t * _E10))))


@njit(**_OPTIONS)
def sigmoid(x):
    """1 / (1 + e^-x) of a float32 number, through tanh(x / 2)."""
    x = min(max(_HALF * x, np.float32(-9)), np.float32(9))
    t = x * x
    numerator = _T0 + t * (_T1 + t * (_T2 + t * (_T3 + t * _T4)))
    return _HALF + _HALF * x * numerator / (_ONE + t * (_T5 + t * (_T6 + t * (_T7 + t * _T8))))


@njit(**_OPTIONS)
def gelu(x, first, last):
    """GELU of ``x`` (streams, features), in place, for some features."""
    for stream in range(x.shape[0]):
        row = x[stream, first:last]
        for i in range(row.size):
            row[i] = _HALF * row[i] * (_ONE + erf(row[i] * _INVERSE_ROOT_OF_TWO))


@njit(**_OPTIONS)
def gated_add(x, gates, width, first, last):
    """x += a · sigmoid(b) for ``gates`` (streams, [a, b]) of ``width`` features each, for some features."""
    for stream in range(x.shape[0]):
        row = x[stream, first:last]
        a, b = gates[stream, first:last], gates[stream, width + first : width + last]
        for i in range(row.size):
            row[i] += a[i] * sigmoid(b[i])


@njit(**_OPTIONS)
def copy(x, first, last, buffers, place):
    """Keep some features of ``x`` in the buffers."""
    for stream in range(x.shape[0]):
        row, kept = x[stream, first:last], buffers[stream, place + first : place + last]
        for i in range(row.size):
            kept[i] = row[i]


@njit(**_OPTIONS)
def add(x, first, last, buffers, place):
    """Add to some features of ``x`` what is kept in the buffers."""
    for stream in range(x.shape[0]):
        row, kept = x[stream, first:last], buffers[stream, place + first : place + last]
        for i in range(row.size):
            row[i] += kept[i]


@njit(**_OPTIONS)
def put_in_frame(x, first, last, buffers, place, pool, slot):
    """Sample ``slot`` of a frame (features, pool) in the buffers."""
    for stream in range(x.shape[0]):
        row, frame = x[stream], buffers[stream, place + slot :]
        for i in range(first, last):
            frame[i * pool] = row[i]


@njit(**_OPTIONS)
def add_from_frame(x, first, last, buffers, place, pool, slot):
    """x += sample ``slot`` of a frame (features, pool) in the buffers."""
    for stream in range(x.shape[0]):
        row, frame = x[stream], buffers[stream, place + slot :]
        for i in range(first, last):
            row[i] += frame[i * pool]


@njit(**_OPTIONS)
def linear(weights, begin, n_in, n_out, first, last, source, target, added):
    """target (+)= source · W + bias for outputs ``first`` to ``last``; W (n_in, n_out) and bias lie at ``begin``.

    Eight rows of W at a time, used for all streams while they are in the nearest cache.
    """
    count = last - first
    bias = weights[begin + n_in * n_out + first : begin + n_in * n_out + last]
    for stream in range(source.shape[0]):
        y = target[stream, first:last]
        if added:
            for o in range(count):
                y[o] += bias[o]
        else:
            for o in range(count):
                y[o] = bias[o]
    whole = n_in // 8 * 8
    for i in range(0, whole, 8):
        row = begin + i * n_out + first
        w0 = weights[row : row + count]
        w1 = weights[row + n_out : row + n_out + count]
        w2 = weights[row + 2 * n_out : row + 2 * n_out + count]
        w3 = weights[row + 3 * n_out : row + 3 * n_out + count]
        w4 = weights[row + 4 * n_out : row + 4 * n_out + count]
        w5 = weights[row + 5 * n_out : row + 5 * n_out + count]
        w6 = weights[row + 6 * n_out : row + 6 * n_out + count]
        w7 = weights[row + 7 * n_out : row + 7 * n_out + count]
        for stream in range(source.shape[0]):
            x, y = source[stream, i : i + 8], target[stream, first:last]
            x0, x1, x2, x3, x4, x5, x6, x7 = x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7]
            for o in range(count):
                y[o] += (
                    x0 * w0[o]
                    + x1 * w1[o]
                    + x2 * w2[o]
                    + x3 * w3[o]
                    + x4 * w4[o]
                    + x5 * w5[o]
                    + x6 * w6[o]
                    + x7 * w7[o]
                )
    for i in range(whole, n_in):
        w = weights[begin + i * n_out + first : begin + i * n_out + last]
        for stream in range(source.shape[0]):
            y, xi = target[stream, first:last], source[stream, i]
            for o in range(count):
                y[o] += xi * w[o]


@njit(**_OPTIONS)
def norm(x, width, layer_norm, weights, begin, target):
    """The channel norm of ``x`` (streams, width): layer norm, or SaShiMi's scalar norm with one gain and one shift."""
    for stream in range(x.shape[0]):
        row, y = x[stream, :width], target[stream, :width]
        total = np.float32(0)
        for i in range(width):
            total += row[i]
        mean = total / np.float32(width)
        square = np.float32(0)
        for i in range(width):
            square += (row[i] - mean) * (row[i] - mean)
        variance = square / np.float32(width)
        if layer_norm:
            inverse = _ONE / np.sqrt(variance + _LAYER_NORM_EPSILON)
            gain, offset = weights[begin : begin + width], weights[begin + width : begin + 2 * width]
            for i in range(width):
                y[i] = (row[i] - mean) * inverse * gain[i] + offset[i]
        else:
            inverse = weights[begin] / np.sqrt(variance + _SCALAR_NORM_EPSILON)
            shift = weights[begin + 1] - mean
            for i in range(width):
                y[i] = (row[i] + shift) * inverse


@njit(**_OPTIONS)
def state_step(nplr, weights, begin, skip, n, states, offset, first, last, u, scratch, y):
    """One step of the state spaces of some features: inputs ``u``, outputs ``y`` (streams, features), ``states`` moved.

    Of each feature, real and imaginary parts of a, b, C and of u and v if ``nplr`` lie side by side in the weights, C
    and v times two; of each feature and stream, the real parts of the state and the imaginary ones in ``states``.
    ``scratch`` is memory for n numbers.
    """
    n_streams, gains = u.shape[0], weights[skip : skip + last]
    # Unsigned positions cannot be negative: no test for that stands between a loop and vector instructions.
    n, size = np.uintp(n), np.uintp((10 if nplr else 6) * n)
    for feature in range(first, last):
        a_real = np.uintp(begin) + np.uintp(feature) * size
        a_imag = a_real + n
        b_real = a_imag + n
        b_imag = b_real + n
        c_real = b_imag + n
        c_imag = c_real + n
        u_real = c_imag + n
        u_imag = u_real + n
        v_real = u_imag + n
        v_imag = v_real + n
        w, x = weights, states
        for stream in range(n_streams):
            real = np.uintp(offset * n_streams) + np.uintp((feature * n_streams + stream) * 2) * n
            imag, signal = real + n, u[stream, feature]
            if nplr:
                inner = np.float32(0)
                for i in range(n):
                    inner += w[v_real + i] * x[real + i] - w[v_imag + i] * x[imag + i]
                for i in range(n):
                    moved = w[a_real + i] * x[real + i] - w[a_imag + i] * x[imag + i]
                    scratch[i] = moved + w[b_real + i] * signal - w[u_real + i] * inner
                for i in range(n):
                    moved = w[a_real + i] * x[imag + i] + w[a_imag + i] * x[real + i]
                    x[imag + i] = moved + w[b_imag + i] * signal - w[u_imag + i] * inner
            else:
                for i in range(n):
                    moved = w[a_real + i] * x[real + i] - w[a_imag + i] * x[imag + i]
                    scratch[i] = moved + w[b_real + i] * signal
                for i in range(n):
                    moved = w[a_real + i] * x[imag + i] + w[a_imag + i] * x[real + i]
                    x[imag + i] = moved + w[b_imag + i] * signal
            output = np.float32(0)
            for i in range(n):
                x[real + i] = scratch[i]
                output += w[c_real + i] * scratch[i] - w[c_imag + i] * x[imag + i]
            y[stream, feature] = output + gains[feature] * signal
