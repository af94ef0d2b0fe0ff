"""The arithmetic of a step, compiled: norms, gates, and what is moved about. Streams are rows, features are columns.

Inner loops run over contiguous slices with one array written and few read: LLVM turns these into vector instructions.
"""

import numpy as np
from numba import njit

from sashimi_diffusion.generation.numba_engine.vectors import LANES, whole_vectors

_OPTIONS = {"nogil": True, "fastmath": True, "error_model": "numpy"}
_ONE, _HALF = np.float32(1), np.float32(0.5)
_LAYER_NORM_EPSILON, _SCALAR_NORM_EPSILON = np.float32(1e-5), np.float32(1e-20)
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
def add_partials(partials, x, at, width, added):
    """x (+)= Σ partials (shares, streams, features) for columns of ``x`` from ``at``."""
    for stream in range(x.shape[0]):
        row = x[stream, at : at + width]
        for index in range(partials.shape[0]):
            partial = partials[index, stream, :width]
            if added or index > 0:
                for i in range(width):
                    row[i] += partial[i]
            else:
                for i in range(width):
                    row[i] = partial[i]


@njit(**_OPTIONS)
def gated_add(x, at, width, hidden, gates):
    """x += a · sigmoid(b) for columns of ``x`` from ``at``; ``gates`` says where a and b are in ``hidden``."""
    for stream in range(x.shape[0]):
        row = x[stream, at : at + width]
        a, b = hidden[stream, gates[0] : gates[0] + width], hidden[stream, gates[1] : gates[1] + width]
        for i in range(row.size):
            row[i] += a[i] * sigmoid(b[i])


@njit(**_OPTIONS)
def copy(x, at, width, buffers, place):
    """Keep columns of ``x`` from ``at`` in the buffers."""
    for stream in range(x.shape[0]):
        row, kept = x[stream, at : at + width], buffers[stream, place : place + width]
        for i in range(row.size):
            kept[i] = row[i]


@njit(**_OPTIONS)
def add(x, at, width, buffers, place):
    """Add to columns of ``x`` from ``at`` what is kept in the buffers."""
    for stream in range(x.shape[0]):
        row, kept = x[stream, at : at + width], buffers[stream, place : place + width]
        for i in range(row.size):
            row[i] += kept[i]


@njit(**_OPTIONS)
def put_in_frame(x, at, width, buffers, place, pool, slot):
    """Sample ``slot`` of a frame (features, pool) in the buffers."""
    for stream in range(x.shape[0]):
        row, frame = x[stream, at:], buffers[stream, place + slot :]
        for i in range(width):
            frame[i * pool] = row[i]


@njit(**_OPTIONS)
def add_from_frame(x, at, width, buffers, place, pool, slot):
    """x += sample ``slot`` of a frame (features, pool) in the buffers."""
    for stream in range(x.shape[0]):
        row, frame = x[stream, at:], buffers[stream, place + slot :]
        for i in range(width):
            row[i] += frame[i * pool]


@njit(**_OPTIONS)
def norm(x, at, width, layer_norm, weights, begin, target):
    """The norm over columns of ``x`` from ``at``: layer norm, or SaShiMi's scalar norm with one gain and one shift."""
    for stream in range(x.shape[0]):
        row, y = x[stream, at : at + width], target[stream, :width]
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
            second = begin + whole_vectors(width)
            gain, offset = weights[begin : begin + width], weights[second : second + width]
            for i in range(width):
                y[i] = (row[i] - mean) * inverse * gain[i] + offset[i]
        else:
            inverse = weights[begin] / np.sqrt(variance + _SCALAR_NORM_EPSILON)
            shift = weights[begin + LANES] - mean
            for i in range(width):
                y[i] = (row[i] + shift) * inverse
