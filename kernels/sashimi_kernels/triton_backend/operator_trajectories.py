"""Trajectories of a state space over a chunk, from which ``chunk_operators`` consist, and their gradients.

For a feature there are up to four, the rows of a tile of states. With Ā x = a x - u · 2 Re(v · x), a column x and the
others, which are output vectors, follow from

    0: x[t] = Ā^t B̄               x[t+1] = a x[t] - u · 2 Re(v · x[t])
    1: r[t] = c Ā^(t+1)           r[t+1] = a r[t] - v · 2 Re(u · r[t])
    2: q[t] = c' Ā^(t+1-shift)    like r
    3: w[t] = v Ā^t               like r; for ``operator_advance``

One program computes them for one feature, with the states in registers. States and sums are float64, because the
convolution multiplies errors of the operators by powers of Ā. Output vectors c are stored as (2 Re c, -2 Im c).
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
    reverse_ptr,  # c', None without a reverse direction
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
    kinds, n_offsets = tl.arange(0, 4)[:, None], tl.arange(0, BLOCK_N)
    low_rank: tl.constexpr = u_ptr is not None
    both: tl.constexpr = reverse_ptr is not None
    a_re, a_im = load_vector(a_ptr, pid_h, n_offsets, n_states)
    b_re, b_im = load_vector(b_ptr, pid_h, n_offsets, n_states)
    u_re, u_im = load_vector(u_ptr, pid_h, n_offsets, n_states)
    v_re, v_im = load_vector(v_ptr, pid_h, n_offsets, n_states)
    c_re, c_im = load_vector(c_ptr, pid_h, n_offsets, n_states)
    d_re, d_im = load_vector(reverse_ptr, pid_h, n_offsets, n_states)
    out_re, out_im, in_re, in_im = _low_rank_term(kinds, u_re, u_im, v_re, v_im)
    re, im = _starts(kinds, b_re, c_re, d_re, v_re), _starts(kinds, b_im, c_im, d_im, v_im)
    lags_ptr += pid_h * (2 * CHUNK - 1) + CHUNK - 1
    _store_first_lag(lags_ptr, tl.sum(re * b_re - im * b_im, 1), shift)
    next_re, next_im = _next(re, im, a_re, a_im, out_re, out_im, in_re, in_im, low_rank)
    later = _starts_later(kinds, shift)
    re, im = tl.where(later, next_re, re), tl.where(later, next_im, im)
    places, strides = _places(kinds, pid_h, n_states, both, CHUNK)
    pairs = tl.broadcast_to(2 * n_offsets[None, :, None] + tl.arange(0, 2)[None, None, :], (4, BLOCK_N, 2))
    is_x, is_r, is_w = _masks(kinds, n_offsets, n_states, low_rank, both)
    factors, mirrored = _factors(kinds), pid_h * CHUNK * 4 * n_states + 2 * n_states
    lag_signs, lag_mask = tl.where(kinds == 1, 1, -1), (kinds == 1) | (kinds == 2)
    for t in range(CHUNK):
        states = tl.join(re, im) * factors
        offsets = places + pairs
        tl.store(write_ptr + offsets, states, mask=is_x)
        tl.store(read_ptr + offsets, states, mask=is_r)
        if both:
            tl.store(write_ptr + (mirrored + t * 4 * n_states + pairs), states, mask=is_x)
        if low_rank:
            tl.store(inner_ptr + offsets, states, mask=is_w)
        # r · B̄ at a positive lag, and q · B̄, zero without a reverse direction, at its negative.
        lags = 2 * tl.sum(re * b_re - im * b_im, 1, keep_dims=True)
        tl.store(lags_ptr + lag_signs * (t + 1), lags, mask=lag_mask & (t + 1 < CHUNK))
        re, im = _next(re, im, a_re, a_im, out_re, out_im, in_re, in_im, low_rank)
        places += strides


@triton.jit
def trajectory_gradients_kernel(
    a_ptr,  # (H, N, 2), like b, u, v, c, reverse and their gradients
    b_ptr,
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
    kinds, n_offsets = tl.arange(0, 4)[:, None], tl.arange(0, BLOCK_N)
    low_rank: tl.constexpr = u_ptr is not None
    both: tl.constexpr = reverse_ptr is not None
    a_re, a_im = load_vector(a_ptr, pid_h, n_offsets, n_states)
    b_re, b_im = load_vector(b_ptr, pid_h, n_offsets, n_states)
    u_re, u_im = load_vector(u_ptr, pid_h, n_offsets, n_states)
    v_re, v_im = load_vector(v_ptr, pid_h, n_offsets, n_states)
    out_re, out_im, in_re, in_im = _low_rank_term(kinds, u_re, u_im, v_re, v_im)
    dlags_ptr += pid_h * (2 * CHUNK - 1) + CHUNK - 1
    places, strides = _places(kinds, pid_h, n_states, both, CHUNK)
    places += (CHUNK - 1) * strides
    pairs = tl.broadcast_to(2 * n_offsets[None, :, None] + tl.arange(0, 2)[None, None, :], (4, BLOCK_N, 2))
    is_x, is_r, is_w = _masks(kinds, n_offsets, n_states, low_rank, both)
    factors, mirrored = _factors(kinds), pid_h * CHUNK * 4 * n_states + 2 * n_states
    inverse = 1 / factors
    lag_signs, lag_mask = tl.where(kinds == 1, 1, -1), (kinds == 1) | ((kinds == 2) & both)
    zero = tl.zeros((4, BLOCK_N), dtype=tl.float64)
    adjoint_re, adjoint_im, da_re, da_im, db_re, db_im = zero, zero, zero, zero, zero, zero
    dout_re, dout_im, din_re, din_im = zero, zero, zero, zero
    for step in range(CHUNK):
        t = CHUNK - 1 - step
        offsets = places + pairs
        re, im = _load(write_ptr, read_ptr, inner_ptr, offsets, is_x, is_r, is_w, inverse)
        g_re, g_im = _load(dwrite_ptr, dread_ptr, dinner_ptr, offsets, is_x, is_r, is_w, factors)
        if both:
            more = tl.load(dwrite_ptr + (mirrored + t * 4 * n_states + pairs), mask=is_x, other=0.0)
            more_re, more_im = tl.split(more.to(tl.float64))
            g_re, g_im = g_re + more_re, g_im + more_im
        dlags = tl.load(dlags_ptr + lag_signs * (t + 1), mask=lag_mask & (t + 1 < CHUNK), other=0.0)
        dlags = 2 * dlags.to(tl.float64)
        g_re, g_im = g_re + dlags * b_re, g_im - dlags * b_im
        db_re, db_im = db_re + dlags * re, db_im - dlags * im
        adjoint_re, adjoint_im, da_re, da_im, dout_re, dout_im, din_re, din_im = _previous(
            adjoint_re, adjoint_im, g_re, g_im, re, im, a_re, a_im, out_re, out_im, in_re, in_im,
            da_re, da_im, dout_re, dout_im, din_re, din_im, low_rank,
        )  # fmt: skip
        places -= strides
    # The gradients of the vectors from which the trajectories start.
    c_re, c_im = load_vector(c_ptr, pid_h, n_offsets, n_states)
    d_re, d_im = load_vector(reverse_ptr, pid_h, n_offsets, n_states)
    re, im = _starts(kinds, b_re, c_re, d_re, v_re), _starts(kinds, b_im, c_im, d_im, v_im)
    later = _starts_later(kinds, shift)
    dlag = 2 * tl.load(dlags_ptr).to(tl.float64) * ((kinds == 1) | ((kinds == 2) & (shift == 0)))
    db_re, db_im = db_re + dlag * re, db_im - dlag * im
    first_re, first_im, da_re, da_im, dout_re, dout_im, din_re, din_im = _previous(
        tl.where(later, adjoint_re, 0.0), tl.where(later, adjoint_im, 0.0), tl.where(later, 0.0, adjoint_re),
        tl.where(later, 0.0, adjoint_im), re, im, a_re, a_im, out_re, out_im, in_re, in_im,
        da_re, da_im, dout_re, dout_im, din_re, din_im, low_rank,
    )  # fmt: skip
    first_re, first_im = first_re + dlag * b_re, first_im - dlag * b_im
    _add_sum(da_ptr, pid_h, da_re, da_im, n_offsets, n_states)
    db_re, db_im = tl.where(kinds == 0, first_re, db_re), tl.where(kinds == 0, first_im, db_im)
    _store_sum(db_ptr, pid_h, db_re, db_im, n_offsets, n_states)
    _store_sum(dc_ptr, pid_h, first_re * (kinds == 1), first_im * (kinds == 1), n_offsets, n_states)
    if both:
        _store_sum(dreverse_ptr, pid_h, first_re * (kinds == 2), first_im * (kinds == 2), n_offsets, n_states)
    if low_rank:
        du_re, du_im = tl.where(kinds == 0, dout_re, din_re), tl.where(kinds == 0, dout_im, din_im)
        _add_sum(du_ptr, pid_h, du_re, du_im, n_offsets, n_states)
        dv_re, dv_im = tl.where(kinds == 0, din_re, dout_re), tl.where(kinds == 0, din_im, dout_im)
        dv_re, dv_im = dv_re + first_re * (kinds == 3), dv_im + first_im * (kinds == 3)
        _store_sum(dv_ptr, pid_h, dv_re, dv_im, n_offsets, n_states)


@triton.jit
def _low_rank_term(kinds, u_re, u_im, v_re, v_im):
    """Return the vectors (out, in) of the term - out · 2 Re(in · x) for each trajectory: (u, v) or (v, u)."""
    out_re, out_im = tl.where(kinds == 0, u_re, v_re), tl.where(kinds == 0, u_im, v_im)
    return out_re, out_im, tl.where(kinds == 0, v_re, u_re), tl.where(kinds == 0, v_im, u_im)


@triton.jit
def _starts(kinds, b, c, d, v):
    return tl.where(kinds == 0, b, tl.where(kinds == 1, c, tl.where(kinds == 2, d, v)))


@triton.jit
def _starts_later(kinds, shift):
    """Return which trajectories start one step after their vector: r, and q with shift 0."""
    return (kinds == 1) | ((kinds == 2) & (shift == 0))


@triton.jit
def _masks(kinds, n_offsets, n_states, LOW_RANK: tl.constexpr, BOTH: tl.constexpr):
    """Return which of the pairs (4, N, 1) belong to write, read and inner."""
    kinds, mask = kinds[:, :, None], (n_offsets < n_states)[None, :, None]
    is_r = (kinds == 1) | ((kinds == 2) & BOTH)
    return (kinds == 0) & mask, is_r & mask, (kinds == 3) & LOW_RANK & mask


@triton.jit
def _factors(kinds):
    """Return (4, 1, 2): columns are stored as they are, output vectors c as (2 Re c, -2 Im c)."""
    of_outputs = 2.0 - 4.0 * tl.arange(0, 2)[None, None, :]
    return tl.where(kinds[:, :, None] == 0, 1.0, of_outputs).to(tl.float64)


@triton.jit
def _places(kinds, pid_h, n_states, BOTH: tl.constexpr, CHUNK: tl.constexpr):
    """Return the places of the first states in write, read, read and inner, and the distance to the next: (4, 1, 1)."""
    kinds = kinds[:, :, None]
    n = 2 * n_states
    pitch = 2 * n if BOTH else n
    first, last = pid_h * CHUNK * pitch, (pid_h * CHUNK + CHUNK - 1) * pitch
    places = tl.where(kinds == 1, first, tl.where(kinds == 2, last + n, pid_h * CHUNK * n))
    strides = tl.where(kinds == 1, pitch, tl.where(kinds == 3, n, -pitch))
    return tl.where(kinds == 0, last, places), strides


@triton.jit
def _store_first_lag(lags_ptr, products, shift):
    """Store lag 0 from the products of B̄ with c and c'."""
    kinds = tl.arange(0, 4)
    tl.store(lags_ptr, 2 * tl.sum(tl.where((kinds == 1) | ((kinds == 2) & (shift == 0)), products, 0.0), 0))


@triton.jit
def _next(re, im, a_re, a_im, out_re, out_im, in_re, in_im, LOW_RANK: tl.constexpr):
    """Return a x - out · 2 Re(in · x)."""
    next_re, next_im = a_re * re - a_im * im, a_re * im + a_im * re
    if LOW_RANK:
        scalar = 2 * tl.sum(in_re * re - in_im * im, 1, keep_dims=True)
        next_re, next_im = next_re - out_re * scalar, next_im - out_im * scalar
    return next_re, next_im


@triton.jit
def _previous(
    adjoint_re, adjoint_im, g_re, g_im, re, im, a_re, a_im, out_re, out_im, in_re, in_im,
    da_re, da_im, dout_re, dout_im, din_re, din_im, LOW_RANK: tl.constexpr,
):  # fmt: skip
    """Return the adjoint of x from that of :func:`_next` and the gradient g of x, and add to da, dout and din."""
    da_re += re * adjoint_re + im * adjoint_im
    da_im += re * adjoint_im - im * adjoint_re
    g_re += a_re * adjoint_re + a_im * adjoint_im
    g_im += a_re * adjoint_im - a_im * adjoint_re
    if LOW_RANK:
        scalar = 2 * tl.sum(in_re * re - in_im * im, 1, keep_dims=True)
        dscalar = -2 * tl.sum(out_re * adjoint_re + out_im * adjoint_im, 1, keep_dims=True)
        dout_re, dout_im = dout_re - scalar * adjoint_re, dout_im - scalar * adjoint_im
        din_re, din_im = din_re + dscalar * re, din_im - dscalar * im
        g_re, g_im = g_re + dscalar * in_re, g_im - dscalar * in_im
    return g_re, g_im, da_re, da_im, dout_re, dout_im, din_re, din_im


@triton.jit
def _store_sum(ptr, pid_h, re, im, n_offsets, n_states):
    """Store the sum over the trajectories as a vector of complex (H, N)."""
    store_vector(ptr, pid_h, tl.sum(re, 0), tl.sum(im, 0), n_offsets, n_states)


@triton.jit
def _add_sum(ptr, pid_h, re, im, n_offsets, n_states):
    """Add the sum over the trajectories to a vector of complex (H, N)."""
    old_re, old_im = load_vector(ptr, pid_h, n_offsets, n_states)
    store_vector(ptr, pid_h, old_re + tl.sum(re, 0), old_im + tl.sum(im, 0), n_offsets, n_states)


@triton.jit
def load_vector(ptr, pid_h, n_offsets, n_states):
    """Load a vector of complex (H, N) as real and imaginary parts in float64, zeros if the pointer is None."""
    re, im = tl.zeros(n_offsets.shape, dtype=tl.float64), tl.zeros(n_offsets.shape, dtype=tl.float64)
    if ptr is not None:
        ptrs, mask = ptr + (pid_h * n_states + n_offsets) * 2, n_offsets < n_states
        re = tl.load(ptrs, mask=mask, other=0.0).to(tl.float64)
        im = tl.load(ptrs + 1, mask=mask, other=0.0).to(tl.float64)
    return re, im


@triton.jit
def store_vector(ptr, pid_h, re, im, n_offsets, n_states):
    """Store a vector of complex (H, N)."""
    ptrs, mask = ptr + (pid_h * n_states + n_offsets) * 2, n_offsets < n_states
    tl.store(ptrs, re, mask=mask)
    tl.store(ptrs + 1, im, mask=mask)


@triton.jit
def _load(write_ptr, read_ptr, inner_ptr, offsets, is_x, is_r, is_w, factors):
    """Load states in float64, multiplied by ``factors``, as real and imaginary parts (4, N)."""
    pairs = tl.load(write_ptr + offsets, mask=is_x, other=0.0)
    pairs += tl.load(read_ptr + offsets, mask=is_r, other=0.0)
    if inner_ptr is not None:
        pairs += tl.load(inner_ptr + offsets, mask=is_w, other=0.0)
    return tl.split(pairs.to(tl.float64) * factors)
