"""Trajectories of a state space over a chunk, from which ``chunk_operators`` consist, and their gradients.

The columns x[t] = Ā^t B̄ and the rows r[t] = c Ā^(t+1), q[t] = c' Ā^(t+1-shift) and w[t] = v Ā^t follow from

    x[t+1] = a x[t] - u · 2 Re(v · x[t])        r[t+1] = a r[t] - v · 2 Re(u · r[t])

One program computes all of them for one feature, with the states in registers. Sums over the states and over the chunk
are float64, because the convolution multiplies errors of the operators by powers of Ā. The rows w are those of the
low-rank term in Ā^T, see ``operator_advance``.
"""

import triton
import triton.language as tl


@triton.jit
def trajectories_kernel(
    a_ptr,  # (H, N, 2), like b, u, v, c and reverse
    b_ptr,
    u_ptr,  # None for a diagonal system, like v and inner
    v_ptr,
    c_ptr,
    reverse_ptr,  # None without a reverse direction
    write_ptr,  # (H, T, D·n)
    read_ptr,  # (H, T, D·n)
    lags_ptr,  # (H, 2T-1)
    inner_ptr,  # (H, T, n): w
    n_states,
    shift,
    CHUNK: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    pid_h = tl.program_id(0).to(tl.int64)
    n_offsets = tl.arange(0, BLOCK_N)
    n = 2 * n_states
    pitch = n if reverse_ptr is None else 2 * n
    a_re, a_im = load_vector(a_ptr, pid_h, n_offsets, n_states)
    u_re, u_im = load_vector(u_ptr, pid_h, n_offsets, n_states)
    v_re, v_im = load_vector(v_ptr, pid_h, n_offsets, n_states)
    c_re, c_im = load_vector(c_ptr, pid_h, n_offsets, n_states)
    d_re, d_im = load_vector(reverse_ptr, pid_h, n_offsets, n_states)
    x_re, x_im = load_vector(b_ptr, pid_h, n_offsets, n_states)
    r_re, r_im, w_re, w_im = c_re, c_im, v_re, v_im
    q_re, q_im = d_re, d_im
    low_rank: tl.constexpr = u_ptr is not None
    if reverse_ptr is not None:
        if shift == 0:
            q_re, q_im = _next(q_re, q_im, a_re, a_im, v_re, v_im, u_re, u_im, low_rank)
    write_ptr += pid_h * CHUNK * pitch
    read_ptr += pid_h * CHUNK * pitch
    lags_ptr += pid_h * (2 * CHUNK - 1) + CHUNK - 1
    for t in range(CHUNK):
        mirrored = CHUNK - 1 - t
        present, future = 2 * tl.sum(c_re * x_re - c_im * x_im, 0), 0.0
        _store(write_ptr + mirrored * pitch, x_re, x_im, n_offsets, n_states)
        r_re, r_im = _next(r_re, r_im, a_re, a_im, v_re, v_im, u_re, u_im, low_rank)
        _store(read_ptr + t * pitch, 2 * r_re, -2 * r_im, n_offsets, n_states)
        if reverse_ptr is not None:
            future = 2 * tl.sum(d_re * x_re - d_im * x_im, 0)
            present += tl.where(t + shift == 0, future, 0.0)
            _store(write_ptr + t * pitch + n, x_re, x_im, n_offsets, n_states)
            _store(read_ptr + mirrored * pitch + n, 2 * q_re, -2 * q_im, n_offsets, n_states)
            q_re, q_im = _next(q_re, q_im, a_re, a_im, v_re, v_im, u_re, u_im, low_rank)
        tl.store(lags_ptr + t, present)
        tl.store(lags_ptr - t - shift, future, mask=(t + shift > 0) & (t + shift < CHUNK))
        if low_rank:
            _store(inner_ptr + (pid_h * CHUNK + t) * n, 2 * w_re, -2 * w_im, n_offsets, n_states)
            w_re, w_im = _next(w_re, w_im, a_re, a_im, v_re, v_im, u_re, u_im, low_rank)
        x_re, x_im = _next(x_re, x_im, a_re, a_im, u_re, u_im, v_re, v_im, low_rank)


@triton.jit
def trajectory_gradients_kernel(
    a_ptr,  # (H, N, 2), like u, v, c, reverse and their gradients
    u_ptr,
    v_ptr,
    c_ptr,
    reverse_ptr,
    write_ptr,  # (H, T, D·n)
    read_ptr,  # (H, T, D·n)
    inner_ptr,  # (H, T, n)
    dwrite_ptr,
    dread_ptr,
    dlags_ptr,
    dinner_ptr,
    da_ptr,  # contains the gradient through advance, like du; receives the sum
    db_ptr,
    du_ptr,
    dv_ptr,
    dc_ptr,
    dreverse_ptr,
    n_states,
    shift,
    CHUNK: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    pid_h = tl.program_id(0).to(tl.int64)
    n_offsets = tl.arange(0, BLOCK_N)
    n = 2 * n_states
    pitch = n if reverse_ptr is None else 2 * n
    a_re, a_im = load_vector(a_ptr, pid_h, n_offsets, n_states)
    u_re, u_im = load_vector(u_ptr, pid_h, n_offsets, n_states)
    v_re, v_im = load_vector(v_ptr, pid_h, n_offsets, n_states)
    c_re, c_im = load_vector(c_ptr, pid_h, n_offsets, n_states)
    d_re, d_im = load_vector(reverse_ptr, pid_h, n_offsets, n_states)
    da_re, da_im = load_vector(da_ptr, pid_h, n_offsets, n_states)
    du_re, du_im = load_vector(du_ptr, pid_h, n_offsets, n_states)
    zero = tl.zeros((BLOCK_N,), dtype=tl.float64)
    dv_re, dv_im, dc_re, dc_im, dd_re, dd_im = zero, zero, zero, zero, zero, zero
    x_adjoint_re, x_adjoint_im, w_adjoint_re, w_adjoint_im = zero, zero, zero, zero
    low_rank: tl.constexpr = u_ptr is not None
    write_ptr += pid_h * CHUNK * pitch
    read_ptr += pid_h * CHUNK * pitch
    dwrite_ptr += pid_h * CHUNK * pitch
    dread_ptr += pid_h * CHUNK * pitch
    dlags_ptr += pid_h * (2 * CHUNK - 1) + CHUNK - 1
    r_adjoint_re, r_adjoint_im = _load(dread_ptr + (CHUNK - 1) * pitch, n_offsets, n_states)
    r_adjoint_re, r_adjoint_im = 2 * r_adjoint_re, -2 * r_adjoint_im
    q_adjoint_re, q_adjoint_im = zero, zero
    if reverse_ptr is not None:
        q_adjoint_re, q_adjoint_im = _load(dread_ptr + n, n_offsets, tl.where(shift == 0, n_states, 0))
        q_adjoint_re, q_adjoint_im = 2 * q_adjoint_re, -2 * q_adjoint_im
    for mirrored in range(CHUNK):
        t = CHUNK - 1 - mirrored
        x_re, x_im = _load(write_ptr + mirrored * pitch, n_offsets, n_states)
        g_re, g_im = _load(dwrite_ptr + mirrored * pitch, n_offsets, n_states)
        dlag = 2 * tl.load(dlags_ptr + t).to(tl.float64)
        g_re, g_im = g_re + dlag * c_re, g_im - dlag * c_im
        dc_re, dc_im = dc_re + dlag * x_re, dc_im - dlag * x_im
        if reverse_ptr is not None:
            more_re, more_im = _load(dwrite_ptr + t * pitch + n, n_offsets, n_states)
            dlag = 2 * tl.load(dlags_ptr - t - shift, mask=t + shift < CHUNK, other=0.0).to(tl.float64)
            g_re, g_im = g_re + more_re + dlag * d_re, g_im + more_im - dlag * d_im
            dd_re, dd_im = dd_re + dlag * x_re, dd_im - dlag * x_im
        x_adjoint_re, x_adjoint_im, da_re, da_im, du_re, du_im, dv_re, dv_im = _previous(
            x_adjoint_re, x_adjoint_im, g_re, g_im, x_re, x_im, a_re, a_im, u_re, u_im, v_re, v_im,
            da_re, da_im, du_re, du_im, dv_re, dv_im, low_rank,
        )  # fmt: skip
        # Before r[0] there is c, and before q[0] with shift 0 there is c'.
        x_re, x_im, g_re, g_im = _load_rows(read_ptr, dread_ptr, (t - 1) * pitch, c_re, c_im, t > 0, n_offsets, n_states)
        r_adjoint_re, r_adjoint_im, da_re, da_im, dv_re, dv_im, du_re, du_im = _previous(
            r_adjoint_re, r_adjoint_im, g_re, g_im, x_re, x_im, a_re, a_im, v_re, v_im, u_re, u_im,
            da_re, da_im, dv_re, dv_im, du_re, du_im, low_rank,
        )  # fmt: skip
        if reverse_ptr is not None:
            place = t - 1 + shift
            x_re, x_im, g_re, g_im = _load_rows(
                read_ptr + n, dread_ptr + n, (CHUNK - 1 - place) * pitch, d_re, d_im, place >= 0, n_offsets, n_states
            )
            q_adjoint_re, q_adjoint_im, da_re, da_im, dv_re, dv_im, du_re, du_im = _previous(
                q_adjoint_re, q_adjoint_im, g_re, g_im, x_re, x_im, a_re, a_im, v_re, v_im, u_re, u_im,
                da_re, da_im, dv_re, dv_im, du_re, du_im, low_rank,
            )  # fmt: skip
        if low_rank:
            x_re, x_im, g_re, g_im = _load_rows(
                inner_ptr, dinner_ptr, (pid_h * CHUNK + t) * n, v_re, v_im, t >= 0, n_offsets, n_states
            )
            w_adjoint_re, w_adjoint_im, da_re, da_im, dv_re, dv_im, du_re, du_im = _previous(
                w_adjoint_re, w_adjoint_im, g_re, g_im, x_re, x_im, a_re, a_im, v_re, v_im, u_re, u_im,
                da_re, da_im, dv_re, dv_im, du_re, du_im, low_rank,
            )  # fmt: skip
    store_vector(da_ptr, pid_h, da_re, da_im, n_offsets, n_states)
    store_vector(db_ptr, pid_h, x_adjoint_re, x_adjoint_im, n_offsets, n_states)
    store_vector(dc_ptr, pid_h, dc_re + r_adjoint_re, dc_im + r_adjoint_im, n_offsets, n_states)
    if reverse_ptr is not None:
        store_vector(dreverse_ptr, pid_h, dd_re + q_adjoint_re, dd_im + q_adjoint_im, n_offsets, n_states)
    if low_rank:
        store_vector(du_ptr, pid_h, du_re, du_im, n_offsets, n_states)
        store_vector(dv_ptr, pid_h, dv_re + w_adjoint_re, dv_im + w_adjoint_im, n_offsets, n_states)


@triton.jit
def _next(re, im, a_re, a_im, u_re, u_im, v_re, v_im, LOW_RANK: tl.constexpr):
    """Return a x - u · 2 Re(v · x)."""
    next_re, next_im = a_re * re - a_im * im, a_re * im + a_im * re
    if LOW_RANK:
        scalar = 2 * tl.sum(v_re * re - v_im * im, 0)
        next_re, next_im = next_re - u_re * scalar, next_im - u_im * scalar
    return next_re, next_im


@triton.jit
def _previous(
    adjoint_re, adjoint_im, g_re, g_im, x_re, x_im, a_re, a_im, u_re, u_im, v_re, v_im,
    da_re, da_im, du_re, du_im, dv_re, dv_im, LOW_RANK: tl.constexpr,
):  # fmt: skip
    """Return the adjoint of x from that of a x - u · 2 Re(v · x) and the gradient g of x, and add to da, du and dv."""
    da_re += x_re * adjoint_re + x_im * adjoint_im
    da_im += x_re * adjoint_im - x_im * adjoint_re
    next_re = g_re + a_re * adjoint_re + a_im * adjoint_im
    next_im = g_im + a_re * adjoint_im - a_im * adjoint_re
    if LOW_RANK:
        scalar = 2 * tl.sum(v_re * x_re - v_im * x_im, 0)
        dscalar = -2 * tl.sum(u_re * adjoint_re + u_im * adjoint_im, 0)
        du_re, du_im = du_re - scalar * adjoint_re, du_im - scalar * adjoint_im
        dv_re, dv_im = dv_re + dscalar * x_re, dv_im - dscalar * x_im
        next_re, next_im = next_re + dscalar * v_re, next_im - dscalar * v_im
    return next_re, next_im, da_re, da_im, du_re, du_im, dv_re, dv_im


@triton.jit
def _load_rows(rows_ptr, gradients_ptr, offset, start_re, start_im, exists, n_offsets, n_states):
    """Load an output vector and its gradient, or return ``start`` and zero. A stored row is (2 Re c, -2 Im c)."""
    size = tl.where(exists, n_states, 0)
    re, im = _load(rows_ptr + offset, n_offsets, size)
    g_re, g_im = _load(gradients_ptr + offset, n_offsets, size)
    return tl.where(exists, re / 2, start_re), tl.where(exists, -im / 2, start_im), 2 * g_re, -2 * g_im


@triton.jit
def load_vector(ptr, pid_h, n_offsets, n_states):
    """Load a vector of complex (H, N) as real and imaginary parts in float64, zeros if the pointer is None."""
    if ptr is None:
        zeros = tl.zeros(n_offsets.shape, dtype=tl.float64)
        return zeros, zeros
    else:
        return _load(ptr + pid_h * 2 * n_states, n_offsets, n_states)


@triton.jit
def store_vector(ptr, pid_h, re, im, n_offsets, n_states):
    """Store a vector of complex (H, N)."""
    _store(ptr + pid_h * 2 * n_states, re, im, n_offsets, n_states)


@triton.jit
def _load(ptr, n_offsets, n_states):
    offsets = 2 * n_offsets[:, None] + tl.arange(0, 2)[None, :]
    pairs = tl.load(ptr + offsets, mask=(n_offsets < n_states)[:, None], other=0.0)
    return tl.split(pairs.to(tl.float64))


@triton.jit
def _store(ptr, re, im, n_offsets, n_states):
    offsets = 2 * n_offsets[:, None] + tl.arange(0, 2)[None, :]
    pairs = tl.join(re, im).to(ptr.dtype.element_ty)
    tl.store(ptr + offsets, pairs, mask=(n_offsets < n_states)[:, None])
