"""Norms, gates and copies of a step, compiled. Rows are streams, columns are features.

Inner loops run over contiguous slices, write one array and read few arrays, because LLVM vectorizes such loops.
"""

import numpy as np

from sashimi_diffusion.generation.numba_engine.vectors import LANES, fast_math, whole_vectors

_ONE, _HALF = np.float32(1), np.float32(0.5)
_LAYER_NORM_EPSILON, _SCALAR_NORM_EPSILON = np.float32(1e-5), np.float32(1e-20)
_INVERSE_ROOT_OF_TWO = np.float32(0.7071067811865476)

# Coefficients of rational functions of x² that approximate erf(x)/x and tanh(x)/x: numerator, then denominator without
# its constant 1. They were fitted by reweighted least squares at Chebyshev nodes of [0, 16] and [0, 81]; the error in
# float32 is below 4e-7 everywhere.
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


@fast_math
def erf(x: np.float32) -> np.float32:
    """Return the error function of x; |x| above 4 counts as 4."""
    x = min(max(x, np.float32(-4)), np.float32(4))
    t = x * x
    numerator = _E0 + t * (_E1 + t * (_E2 + t * (_E3 + t * (_E4 + t * (_E5 + t * _E6)))))
    return x * numerator / (_ONE + t * (_E7 + t * (_E8 + t * (_E9 + t * _E10))))


@fast_math
def sigmoid(x: np.float32) -> np.float32:
    """Return 1 / (1 + e^-x), computed from tanh(x / 2)."""
    x = min(max(_HALF * x, np.float32(-9)), np.float32(9))
    t = x * x
    numerator = _T0 + t * (_T1 + t * (_T2 + t * (_T3 + t * _T4)))
    return _HALF + _HALF * x * numerator / (_ONE + t * (_T5 + t * (_T6 + t * (_T7 + t * _T8))))


@fast_math
def embed(tokens: np.ndarray, width: int, weights: np.ndarray, begin: int, x: np.ndarray) -> None:
    """Copy the embedding of each stream's token to the first ``width`` columns of ``x``.

    Args:
        tokens: int64 (streams,).
        width: features H.
        weights, begin: array with the embedding (num_tokens, H), and the index of its first number.
        x: float32 (streams, columns).
    """
    for stream in range(tokens.size):
        row, at = x[stream, :width], begin + tokens[stream] * width
        embedding = weights[at : at + width]
        for i in range(width):
            row[i] = embedding[i]


@fast_math
def gelu(x: np.ndarray, first: int, last: int) -> None:
    """Apply GELU in place to the columns ``first`` to ``last`` of ``x``."""
    for stream in range(x.shape[0]):
        row = x[stream, first:last]
        for i in range(row.size):
            row[i] = _HALF * row[i] * (_ONE + erf(row[i] * _INVERSE_ROOT_OF_TWO))


@fast_math
def sum_partials(partials: np.ndarray, x: np.ndarray, at: int, width: int, added: bool) -> None:
    """Write the sum of ``partials`` (shards, streams, columns) to columns of ``x``; if ``added``, add it to them."""
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


@fast_math
def add_gated(x: np.ndarray, at: int, width: int, hidden: np.ndarray, values: int, gates: int) -> None:
    """Compute x += a · sigmoid(b), a gated linear unit; a is at column ``values`` of ``hidden``, b at ``gates``."""
    for stream in range(x.shape[0]):
        row = x[stream, at : at + width]
        a, b = hidden[stream, values : values + width], hidden[stream, gates : gates + width]
        for i in range(row.size):
            row[i] += a[i] * sigmoid(b[i])


@fast_math
def copy(x: np.ndarray, at: int, width: int, buffers: np.ndarray, place: int) -> None:
    """Copy ``width`` columns of ``x`` from ``at`` on to the buffers from ``place`` on."""
    for stream in range(x.shape[0]):
        row, saved = x[stream, at : at + width], buffers[stream, place : place + width]
        for i in range(row.size):
            saved[i] = row[i]


@fast_math
def add(x: np.ndarray, at: int, width: int, buffers: np.ndarray, place: int) -> None:
    """Add ``width`` columns of the buffers from ``place`` on to ``x`` from ``at`` on."""
    for stream in range(x.shape[0]):
        row, saved = x[stream, at : at + width], buffers[stream, place : place + width]
        for i in range(row.size):
            row[i] += saved[i]


@fast_math
def copy_to_frame(x: np.ndarray, at: int, width: int, buffers: np.ndarray, place: int, pool: int, slot: int) -> None:
    """Copy columns of ``x`` to sample ``slot`` of a frame (features, pool) in the buffers."""
    for stream in range(x.shape[0]):
        row, frame = x[stream, at:], buffers[stream, place + slot :]
        for i in range(width):
            frame[i * pool] = row[i]


@fast_math
def add_from_frame(x: np.ndarray, at: int, width: int, buffers: np.ndarray, place: int, pool: int, slot: int) -> None:
    """Add sample ``slot`` of a frame (features, pool) in the buffers to columns of ``x``."""
    for stream in range(x.shape[0]):
        row, frame = x[stream, at:], buffers[stream, place + slot :]
        for i in range(width):
            row[i] += frame[i * pool]


@fast_math
def norm(
    x: np.ndarray, at: int, width: int, layer_norm: bool, weights: np.ndarray, begin: int, target: np.ndarray
) -> None:
    """Normalize columns of ``x`` into ``target``: layer norm, or SaShiMi's scalar norm with one gain and one shift."""
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
