"""The operations of a recurrence step in Triton, see ``operations``.

A program computes all features of a few streams. Features are float32 (streams, features) in global memory, so every
thread may read what another has written before the last barrier. In linear maps the rows of a tile are streams; with
several streams there are at least 16 rows, as products on matrix units require.
"""
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl

from sashimi_diffusion.generation.triton_engine.operations import (
    CONSTANTS,
    MEMORY,
    N_IN,
    N_OUT,
    NORM,
    POOL,
    RESIDUAL,
    SKIP,
    SOURCE,
    STRIDE,
    TARGET,
    USES_GELU,
    WEIGHTS,
    WIDTH,
)


@triton.jit
def run_linear(
    row,
    matrices_ptr,
    numbers_ptr,
    features_ptr,
    feature_size,
    GATED: tl.constexpr,
    PRODUCT: tl.constexpr,
    PRECISION: tl.constexpr,
    STREAMS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    """Compute target = f(W norm(source) + b) + residual + skip, where f is GLU if ``GATED``, else GELU or nothing."""
    n_out, target, residual, skip = _whole(row, N_OUT), _whole(row, TARGET), _whole(row, RESIDUAL), _whole(row, SKIP)
    features, mask_rows = _rows(features_ptr, feature_size, STREAMS, ROWS)
    center, scale = _norm(row, numbers_ptr, features, mask_rows, ROWS, BLOCK_WIDTH)
    for start in range(0, n_out, BLOCK_OUT):
        outputs = start + tl.arange(0, BLOCK_OUT)
        y = _product(
            row,
            matrices_ptr,
            numbers_ptr,
            features,
            mask_rows,
            center,
            scale,
            outputs,
            0,
            PRODUCT,
            PRECISION,
            ROWS,
            BLOCK_IN,
        )
        if GATED:
            gates = _product(
                row,
                matrices_ptr,
                numbers_ptr,
                features,
                mask_rows,
                center,
                scale,
                outputs,
                1,
                PRODUCT,
                PRECISION,
                ROWS,
                BLOCK_IN,
            )
            y *= tl.sigmoid(gates)
        elif tl.load(row + USES_GELU) != 0:
            y = _gelu(y)
        mask = mask_rows & (outputs < n_out)[None, :]
        y += tl.load(features + residual + outputs[None, :], mask & (residual >= 0), other=0.0)
        y += tl.load(features + skip + outputs[None, :], mask & (skip >= 0), other=0.0)
        tl.store(features + target + outputs[None, :], y, mask)


@triton.jit
def run_state_space(
    row,
    numbers_ptr,
    states_ptr,
    features_ptr,
    state_size,
    feature_size,
    NPLR: tl.constexpr,
    STREAMS: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Compute target = GELU(2 Re(C x) + D u) and the states x = A s - p 2 Re(q s) + B u of u = norm(source).

    C and q contain the factor 2. Tiles are (streams, features, states); a tile has all states of its features.
    """
    size, source, target = _whole(row, N_IN), _whole(row, SOURCE), _whole(row, TARGET)
    constants, memory = _whole(row, CONSTANTS), _whole(row, MEMORY)
    features, mask_rows = _rows(features_ptr, feature_size, STREAMS, STREAMS)
    center, scale = _norm(row, numbers_ptr, features, mask_rows, STREAMS, BLOCK_WIDTH)
    n = tl.arange(0, BLOCK_N)[None, :]
    streams = tl.arange(0, STREAMS)[:, None, None]
    plane = size * BLOCK_N
    for start in range(0, size, BLOCK_H):
        h = start + tl.arange(0, BLOCK_H)
        mask = (h < size)[:, None] & (n < BLOCK_N)
        tile = h[:, None] * BLOCK_N + n
        system = numbers_ptr + constants + size + tile
        states = states_ptr + memory + streams * state_size + tile[None, :, :]
        s_re, s_im = _load_pair(states, plane, mask[None, :, :])
        x = tl.load(features + source + h[None, :], (h < size)[None, :], other=0.0)
        u = _apply_norm(row, numbers_ptr, x, h, center, scale)
        a_re, a_im = _constant_pair(system, plane, mask)
        b_re, b_im = _constant_pair(system + 2 * plane, plane, mask)
        x_re = a_re * s_re - a_im * s_im + b_re * u[:, :, None]
        x_im = a_re * s_im + a_im * s_re + b_im * u[:, :, None]
        if NPLR:
            p_re, p_im = _constant_pair(system + 6 * plane, plane, mask)
            q_re, q_im = _constant_pair(system + 8 * plane, plane, mask)
            r = tl.sum(q_re * s_re - q_im * s_im, 2)[:, :, None]
            x_re -= p_re * r
            x_im -= p_im * r
        c_re, c_im = _constant_pair(system + 4 * plane, plane, mask)
        d = tl.load(numbers_ptr + constants + h, h < size, other=0.0)
        y = _gelu(tl.sum(c_re * x_re - c_im * x_im, 2) + d[None, :] * u)
        # Threads may hold copies of the same state, so all of them read it before one writes it.
        tl.debug_barrier()
        tl.store(states, x_re, mask[None, :, :])
        tl.store(states + plane, x_im, mask[None, :, :])
        tl.store(features + target + h[None, :], y, (h < size)[None, :])


@triton.jit
def run_add(row, features_ptr, feature_size, position, STREAMS: tl.constexpr, BLOCK_WIDTH: tl.constexpr):
    """Compute target = source + skip, and store the source in the frame if there is one.

    Returns:
        whether a frame is incomplete.
    """
    size, source, target = _whole(row, N_IN), _whole(row, SOURCE), _whole(row, TARGET)
    skip, frame, pool = _whole(row, SKIP), _whole(row, MEMORY), tl.load(row + POOL)
    slot = position // tl.load(row + STRIDE) % pool
    features, mask_rows = _rows(features_ptr, feature_size, STREAMS, STREAMS)
    columns = tl.arange(0, BLOCK_WIDTH)[None, :]
    mask = mask_rows & (columns < size)
    x = tl.load(features + source + columns, mask)
    tl.store(features + frame + slot * size + columns, x, mask & (frame >= 0))
    tl.store(features + target + columns, x + tl.load(features + skip + slot * size + columns, mask), mask)
    return slot < pool - 1


@triton.jit
def run_embedding(tokens, numbers_ptr, features_ptr, feature_size, size, BLOCK_WIDTH: tl.constexpr):
    """Store the embeddings of the tokens (streams) as the first features."""
    columns = tl.arange(0, BLOCK_WIDTH)[None, :]
    rows = tl.arange(0, tokens.shape[0])[:, None]
    x = tl.load(numbers_ptr + tokens[:, None] * size + columns, columns < size)
    tl.store(features_ptr + rows * feature_size + columns, x, columns < size)


@triton.jit
def _product(
    row,
    matrices_ptr,
    numbers_ptr,
    features,
    mask_rows,
    center,
    scale,
    outputs,
    part,
    PRODUCT: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
):
    """Return W norm(source) + b for some outputs, (ROWS, outputs), of the first or second matrix of an operation."""
    n_in, n_out, source = _whole(row, N_IN), _whole(row, N_OUT), _whole(row, SOURCE)
    weights, bias = _whole(row, WEIGHTS) + part * n_in * n_out, _whole(row, CONSTANTS) + part * n_out
    mask_outputs = outputs < n_out
    y = tl.zeros([ROWS, outputs.shape[0]], tl.float32)
    y += tl.load(numbers_ptr + bias + outputs, mask_outputs, other=0.0)[None, :]
    for start in range(0, n_in, BLOCK_IN):
        inputs = start + tl.arange(0, BLOCK_IN)
        x = tl.load(features + source + inputs[None, :], mask_rows & (inputs < n_in)[None, :], other=0.0)
        x = _apply_norm(row, numbers_ptr, x, inputs, center, scale)
        mask = mask_outputs[:, None] & (inputs < n_in)[None, :]
        # Weights are read once per sample, so they bypass the first cache, which keeps the features.
        w = tl.load(
            matrices_ptr + weights + outputs[:, None] * n_in + inputs[None, :], mask, other=0.0, cache_modifier=".cg"
        )
        if ROWS == 1:
            y += tl.sum(w.to(tl.float32) * x, 1)[None, :]
        elif w.dtype == tl.float32:
            y = tl.dot(x, tl.trans(w), y, input_precision=PRECISION)
        else:
            # The sum of two numbers of the weights' dtype keeps the precision of the features.
            high = x.to(w.dtype)
            low = (x - high.to(tl.float32)).to(w.dtype)
            y = tl.dot(high.to(PRODUCT), tl.trans(w).to(PRODUCT), y)
            y = tl.dot(low.to(PRODUCT), tl.trans(w).to(PRODUCT), y)
    return y


@triton.jit
def _norm(row, numbers_ptr, features, mask_rows, ROWS: tl.constexpr, BLOCK_WIDTH: tl.constexpr):
    """Return mean - shift and 1/√(variance + epsilon) of the source, (ROWS, 1); 0 and 1 without a norm."""
    norm, width, source = _whole(row, NORM), tl.load(row + WIDTH), _whole(row, SOURCE)
    center = tl.zeros([ROWS, 1], tl.float32)
    scale = center + 1
    if norm >= 0:
        columns = tl.arange(0, BLOCK_WIDTH)[None, :]
        x = tl.load(features + source + columns, mask_rows & (columns < width), other=0.0)
        mean = tl.sum(x, 1)[:, None] / width
        centered = tl.where(columns < width, x - mean, 0.0)
        variance = tl.sum(centered * centered, 1)[:, None] / width
        center = mean - tl.load(numbers_ptr + norm + 1)
        scale = 1 / tl.sqrt(variance + tl.load(numbers_ptr + norm))
    return center, scale


@triton.jit
def _apply_norm(row, numbers_ptr, x, columns, center, scale):
    """Return norm(x) of a tile (rows, columns), or x without a norm."""
    norm, size = _whole(row, NORM), _whole(row, N_IN)
    mask = (columns < size) & (norm >= 0)
    parameters = numbers_ptr + norm + 16 + columns
    weight = tl.load(parameters, mask, other=1.0)
    offset = tl.load(parameters + size, mask, other=0.0)
    return (x - center) * scale * weight[None, :] + offset[None, :]


@triton.jit
def _rows(features_ptr, feature_size, STREAMS: tl.constexpr, ROWS: tl.constexpr):
    """Return the address of each stream's features, and the mask of the rows that are streams, (ROWS, 1)."""
    rows = tl.arange(0, ROWS)[:, None]
    return features_ptr + rows * feature_size, rows < STREAMS


@triton.jit
def _whole(row, field: tl.constexpr):
    """Return a field of an operation that is a multiple of ``ALIGNMENT``."""
    return tl.multiple_of(tl.load(row + field), 16)


@triton.jit
def _gelu(x):
    return 0.5 * x * (1 + tl.erf(x * 0.7071067811865476))


@triton.jit
def _constant_pair(ptr, plane, mask):
    """Return the real and imaginary parts of constants (features, states) for all streams."""
    re, im = _load_pair(ptr, plane, mask)
    return re[None, :, :], im[None, :, :]


@triton.jit
def _load_pair(ptr, plane, mask):
    """Return real and imaginary parts. They are read once per sample, so they bypass the first cache, see weights."""
    re = tl.load(ptr, mask, other=0.0, cache_modifier=".cg")
    return re, tl.load(ptr + plane, mask, other=0.0, cache_modifier=".cg")
