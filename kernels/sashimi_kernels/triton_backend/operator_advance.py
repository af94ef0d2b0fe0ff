"""The factor ``advance`` of a row of states over a chunk, and its gradients, by matrix products in float64.

With the rows w[s] = v Ā^s (see ``operator_trajectories``), D = diag(a) and the columns p[s] = D^(T-1-s) u,

    Ā^T = D^T - Σ_{s<T} p[s] ⊗ w[s]

``advance`` is the transpose. In real numbers with interleaved real and imaginary parts, w and p are (T, n), and
advance = rotation(a^T) - wᵀ p. A gradient G of ``advance`` gives -p Gᵀ for w and -w G for p.
"""

import triton
import triton.language as tl

from sashimi_kernels.triton_backend.operator_trajectories import load_vector, store_vector


@triton.jit
def advance_kernel(
    a_ptr,  # (H, N, 2)
    u_ptr,  # (H, N, 2), None for a diagonal system
    inner_ptr,  # (H, T, n): w, None for a diagonal system
    advance_ptr,  # (H, n, n)
    n_states,
    CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    pid_h = tl.program_id(0).to(tl.int64)
    n = 2 * n_states
    rows = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    columns = tl.program_id(2) * 2 * BLOCK_N + tl.arange(0, 2 * BLOCK_N)
    n_offsets = tl.program_id(2) * BLOCK_N + tl.arange(0, BLOCK_N)
    a_re, a_im = load_vector(a_ptr, pid_h, n_offsets, n_states)
    low_rank = tl.zeros((BLOCK_K, 2 * BLOCK_N), dtype=tl.float64)
    if u_ptr is not None:
        u_re, u_im = load_vector(u_ptr, pid_h, n_offsets, n_states)
        for start in range(0, CHUNK, BLOCK_T):
            steps = start + tl.arange(0, BLOCK_T)
            inner = _load_steps(inner_ptr, pid_h, steps, rows, n, CHUNK)
            outer = _outer(a_re, a_im, u_re, u_im, CHUNK - 1 - steps)
            low_rank = tl.dot(tl.trans(inner), outer, low_rank, out_dtype=tl.float64)
    power_re, power_im = _powers(a_re[None, :], a_im[None, :], tl.full((1, 1), CHUNK, tl.int32))
    distance = columns[None, :] - rows[:, None]
    # A row of states (re, im) times a complex number is (re, im) [[a_re, a_im], [-a_im, a_re]].
    turned = tl.where(rows[:, None] % 2 == 0, distance == 1, distance == -1)
    sign = tl.where(rows[:, None] % 2 == 0, 1.0, -1.0)
    rotation = tl.where(distance == 0, tl.interleave(power_re, power_re), 0.0)
    rotation += tl.where(turned, sign * tl.interleave(power_im, power_im), 0.0)
    offsets = rows[:, None] * n + columns[None, :]
    mask = (rows < n)[:, None] & (columns < n)[None, :]
    tl.store(advance_ptr + pid_h * n * n + offsets, rotation - low_rank, mask=mask)


@triton.jit
def inner_gradient_kernel(
    a_ptr,  # (H, N, 2)
    u_ptr,  # (H, N, 2)
    dadvance_ptr,  # (H, n, n)
    dinner_ptr,  # (H, T, n)
    n_states,
    CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    pid_h = tl.program_id(0).to(tl.int64)
    n = 2 * n_states
    rows = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    steps = tl.program_id(2) * BLOCK_T + tl.arange(0, BLOCK_T)
    product = tl.zeros((BLOCK_T, BLOCK_K), dtype=tl.float64)
    for start in range(0, n_states, BLOCK_N):
        n_offsets = start + tl.arange(0, BLOCK_N)
        a_re, a_im = load_vector(a_ptr, pid_h, n_offsets, n_states)
        u_re, u_im = load_vector(u_ptr, pid_h, n_offsets, n_states)
        outer = _outer(a_re, a_im, u_re, u_im, CHUNK - 1 - steps)
        columns = 2 * start + tl.arange(0, 2 * BLOCK_N)
        dadvance = _load_matrix(dadvance_ptr, pid_h, rows, columns, n)
        product = tl.dot(outer, tl.trans(dadvance), product, out_dtype=tl.float64)
    offsets = steps[:, None] * n + rows[None, :]
    tl.store(dinner_ptr + pid_h * CHUNK * n + offsets, -product, mask=(rows < n)[None, :])


@triton.jit
def outer_gradient_kernel(
    a_ptr,  # (H, N, 2)
    u_ptr,  # (H, N, 2), None for a diagonal system
    inner_ptr,  # (H, T, n), None for a diagonal system
    dadvance_ptr,  # (H, n, n)
    da_ptr,  # (H, N, 2)
    du_ptr,  # (H, N, 2), None for a diagonal system
    n_states,
    CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    pid_h = tl.program_id(0).to(tl.int64)
    n = 2 * n_states
    n_offsets = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.program_id(1) * 2 * BLOCK_N + tl.arange(0, 2 * BLOCK_N)
    a_re, a_im = load_vector(a_ptr, pid_h, n_offsets, n_states)
    power_re, power_im = _powers(a_re[None, :], a_im[None, :], tl.full((1, 1), CHUNK - 1, tl.int32))
    dpower_re, dpower_im = _rotation_gradient(dadvance_ptr + pid_h * n * n, n_offsets, n_states)
    da_re, da_im = _conjugate_product(power_re, power_im, CHUNK * dpower_re[None, :], CHUNK * dpower_im[None, :])
    da_re, da_im = tl.sum(da_re, 0), tl.sum(da_im, 0)
    if u_ptr is not None:
        u_re, u_im = load_vector(u_ptr, pid_h, n_offsets, n_states)
        du_re, du_im = tl.zeros((BLOCK_N,), dtype=tl.float64), tl.zeros((BLOCK_N,), dtype=tl.float64)
        for start in range(0, CHUNK, BLOCK_T):
            steps = start + tl.arange(0, BLOCK_T)
            product = tl.zeros((BLOCK_T, 2 * BLOCK_N), dtype=tl.float64)
            for row in range(0, n, BLOCK_K):
                rows = row + tl.arange(0, BLOCK_K)
                inner = _load_steps(inner_ptr, pid_h, steps, rows, n, CHUNK)
                dadvance = _load_matrix(dadvance_ptr, pid_h, rows, columns, n)
                product = tl.dot(inner, dadvance, product, out_dtype=tl.float64)
            dp_re, dp_im = tl.split(tl.reshape(-product, (BLOCK_T, BLOCK_N, 2)))
            exponents = CHUNK - 1 - steps[:, None]
            # a^e u has the derivatives a^e and e a^(e-1) u.
            lower_re, lower_im = _powers(a_re[None, :], a_im[None, :], tl.maximum(exponents - 1, 0))
            dlower_re, dlower_im = _conjugate_product(lower_re, lower_im, dp_re, dp_im)
            last = exponents == 0
            high_re, high_im = _conjugate_product(a_re[None, :], a_im[None, :], dlower_re, dlower_im)
            du_re += tl.sum(tl.where(last, dp_re, high_re), 0)
            du_im += tl.sum(tl.where(last, dp_im, high_im), 0)
            sum_re, sum_im = tl.sum(exponents * dlower_re, 0), tl.sum(exponents * dlower_im, 0)
            more_re, more_im = _conjugate_product(u_re, u_im, sum_re, sum_im)
            da_re, da_im = da_re + more_re, da_im + more_im
        store_vector(du_ptr, pid_h, du_re, du_im, n_offsets, n_states)
    store_vector(da_ptr, pid_h, da_re, da_im, n_offsets, n_states)


@triton.jit
def _powers(a_re, a_im, exponents):
    """Return a^e for a row (1, N) and a column of exponents 0 … 255 as real and imaginary parts, (rows, N)."""
    re = tl.full((exponents.shape[0], a_re.shape[1]), 1.0, dtype=tl.float64)
    im = tl.full((exponents.shape[0], a_re.shape[1]), 0.0, dtype=tl.float64)
    for bit in tl.static_range(8):
        taken = (exponents >> bit) % 2 == 1
        factor_re, factor_im = tl.where(taken, a_re, 1.0), tl.where(taken, a_im, 0.0)
        re, im = re * factor_re - im * factor_im, re * factor_im + im * factor_re
        a_re, a_im = a_re * a_re - a_im * a_im, 2 * a_re * a_im
    return re, im


@triton.jit
def _outer(a_re, a_im, u_re, u_im, exponents):
    """Return a^e u for vectors (N,) and exponents (T,) as interleaved real and imaginary parts, (T, 2N)."""
    re, im = _powers(a_re[None, :], a_im[None, :], exponents[:, None])
    return tl.interleave(re * u_re - im * u_im, re * u_im + im * u_re)


@triton.jit
def _conjugate_product(a_re, a_im, b_re, b_im):
    """Return conj(a) b."""
    return a_re * b_re + a_im * b_im, a_re * b_im - a_im * b_re


@triton.jit
def _rotation_gradient(dadvance_ptr, n_offsets, n_states):
    """Return the gradient of the complex numbers z from that of rotation(z) (n, n)."""
    n, mask = 2 * n_states, n_offsets < n_states
    ptrs = dadvance_ptr + 2 * n_offsets * (n + 1)
    re_re, re_im = tl.load(ptrs, mask=mask, other=0.0), tl.load(ptrs + 1, mask=mask, other=0.0)
    im_re, im_im = tl.load(ptrs + n, mask=mask, other=0.0), tl.load(ptrs + n + 1, mask=mask, other=0.0)
    return re_re.to(tl.float64) + im_im, re_im.to(tl.float64) - im_re


@triton.jit
def _load_steps(ptr, pid_h, steps, columns, n, CHUNK: tl.constexpr):
    """Load a tile of (H, T, n) in float64."""
    offsets = steps[:, None] * n + columns[None, :]
    return tl.load(ptr + pid_h * CHUNK * n + offsets, mask=(columns < n)[None, :], other=0.0).to(tl.float64)


@triton.jit
def _load_matrix(ptr, pid_h, rows, columns, n):
    """Load a tile of (H, n, n) in float64."""
    offsets, mask = rows[:, None] * n + columns[None, :], (rows < n)[:, None] & (columns < n)[None, :]
    return tl.load(ptr + pid_h * n * n + offsets, mask=mask, other=0.0).to(tl.float64)
