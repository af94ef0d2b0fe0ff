"""Kernels of one recurrence step of a diagonal or diagonal-plus-rank-one system, with skip connection.

The GELU is optional. Per feature, let u be the input, s the state before the step, x the state after the step, and p, q
the rank-one pair (``u`` and ``v`` of DiscreteNPLR; absent in a diagonal system). n is the index of a state, m the index
of an output:

    r = 2 Re Σ_n q s        x = a s - p r + b u        z = 2 Re Σ_n c x + d u        y = GELU(z)

Without GELU, y = z. The forward pass saves z for the backward pass. The gradient of a complex number is the gradient of
its real part plus i times the gradient of its imaginary part. With dz = dy GELU'(z) (dy without GELU) and
the whole gradient ξ of x,

    ξ  = dx + 2 Σ_m conj(c) dz      dr = -Re Σ_n conj(p) ξ      ds = conj(a) ξ + 2 conj(q) dr
    du = Re Σ_n conj(b) ξ + Σ_m d dz
    da = Σ conj(s) ξ    db = Σ u ξ    dp = -Σ r ξ    dq = 2 Σ conj(s) dr    dc = 2 Σ conj(x) dz    dd = Σ u dz

A Σ without an index is a sum over the batch, which a program computes in a fixed order.

Shapes: u (B, H) with any strides; s, x, ds and dx (B, H, N, 2); a, b, p and q (H, N, 2); c (M, H, N, 2); skip d (M, H);
y and z (B, M, H); r and dr (B, H).

Complex numbers are pairs of float32. A program of the forward kernel or the first backward kernel handles a block of
features of one batch element. A program of the second backward kernel handles a block of features and states of the
whole batch.
"""

import triton
import triton.language as tl


@triton.jit
def step_kernel(
    u_ptr,
    state_ptr,
    a_ptr,
    b_ptr,
    p_ptr,
    q_ptr,
    c_ptr,
    skip_ptr,
    y_ptr,
    x_ptr,
    z_ptr,
    n_features,
    n_states,
    n_outputs,
    u_batch_stride,
    u_feature_stride,
    GELU: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Compute y, x and z.

    x is computed again for every output, because the whole state may not fit into the registers. It is stored only with
    the last output.
    """
    feature_offsets = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    pid_batch = tl.program_id(1)
    feature_mask = feature_offsets < n_features
    u = _input(u_ptr, pid_batch, feature_offsets, feature_mask, u_batch_stride, u_feature_stride)
    r = tl.zeros([BLOCK_H], tl.float32)
    if p_ptr is not None:
        r = _real_product(q_ptr, state_ptr, pid_batch, feature_offsets, n_features, n_states, BLOCK_N)
    for output in range(0, n_outputs):
        z = tl.load(skip_ptr + output * n_features + feature_offsets, feature_mask, other=0.0) * u
        for start in range(0, n_states, BLOCK_N):
            n_offsets = start + tl.arange(0, BLOCK_N)
            mask = feature_mask[:, None] & (n_offsets < n_states)[None, :]
            offsets = _pair_offsets(0, feature_offsets, n_offsets, n_features, n_states)
            state_offsets = _pair_offsets(pid_batch, feature_offsets, n_offsets, n_features, n_states)
            s_re, s_im = _load_pair(state_ptr, state_offsets, mask)
            a_re, a_im = _load_pair(a_ptr, offsets, mask)
            b_re, b_im = _load_pair(b_ptr, offsets, mask)
            x_re = a_re * s_re - a_im * s_im + b_re * u[:, None]
            x_im = a_re * s_im + a_im * s_re + b_im * u[:, None]
            if p_ptr is not None:
                p_re, p_im = _load_pair(p_ptr, offsets, mask)
                x_re -= p_re * r[:, None]
                x_im -= p_im * r[:, None]
            c_offsets = _pair_offsets(output, feature_offsets, n_offsets, n_features, n_states)
            c_re, c_im = _load_pair(c_ptr, c_offsets, mask)
            z += 2 * tl.sum(c_re * x_re - c_im * x_im, 1)
            _store_pair(x_ptr, state_offsets, x_re, x_im, mask & (output == n_outputs - 1))
        y = z
        if GELU:
            y = z * _normal_distribution(z)
        y_offsets = (pid_batch * n_outputs + output) * n_features + feature_offsets
        tl.store(y_ptr + y_offsets, y, feature_mask)
        tl.store(z_ptr + y_offsets, z, feature_mask)


@triton.jit
def signal_gradients_kernel(
    dy_ptr,
    dx_ptr,
    u_ptr,
    state_ptr,
    z_ptr,
    a_ptr,
    b_ptr,
    p_ptr,
    q_ptr,
    c_ptr,
    skip_ptr,
    du_ptr,
    dstate_ptr,
    r_ptr,
    dr_ptr,
    n_features,
    n_states,
    n_outputs,
    u_batch_stride,
    u_feature_stride,
    GELU: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Compute du and ds, and r and dr for ``parameter_gradients_kernel``."""
    feature_offsets = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    pid_batch = tl.program_id(1)
    feature_mask = feature_offsets < n_features
    signal_offsets = pid_batch * n_features + feature_offsets
    du = tl.zeros([BLOCK_H], tl.float32)
    for output in range(0, n_outputs):
        dz = _output_gradient(dy_ptr, z_ptr, pid_batch * n_outputs + output, feature_offsets, n_features, GELU)
        du += tl.load(skip_ptr + output * n_features + feature_offsets, feature_mask, other=0.0) * dz
    dr = tl.zeros([BLOCK_H], tl.float32)
    for start in range(0, n_states, BLOCK_N):
        n_offsets = start + tl.arange(0, BLOCK_N)
        mask = feature_mask[:, None] & (n_offsets < n_states)[None, :]
        offsets = _pair_offsets(0, feature_offsets, n_offsets, n_features, n_states)
        g_re, g_im = _state_gradient(
            dx_ptr,
            dy_ptr,
            z_ptr,
            c_ptr,
            pid_batch,
            feature_offsets,
            n_offsets,
            n_features,
            n_states,
            n_outputs,
            GELU,
        )
        b_re, b_im = _load_pair(b_ptr, offsets, mask)
        du += tl.sum(b_re * g_re + b_im * g_im, 1)
        if p_ptr is not None:
            p_re, p_im = _load_pair(p_ptr, offsets, mask)
            dr -= tl.sum(p_re * g_re + p_im * g_im, 1)
    tl.store(du_ptr + signal_offsets, du, feature_mask)
    if p_ptr is not None:
        r = _real_product(q_ptr, state_ptr, pid_batch, feature_offsets, n_features, n_states, BLOCK_N)
        tl.store(r_ptr + signal_offsets, r, feature_mask)
        tl.store(dr_ptr + signal_offsets, dr, feature_mask)
    for start in range(0, n_states, BLOCK_N):
        n_offsets = start + tl.arange(0, BLOCK_N)
        mask = feature_mask[:, None] & (n_offsets < n_states)[None, :]
        offsets = _pair_offsets(0, feature_offsets, n_offsets, n_features, n_states)
        g_re, g_im = _state_gradient(
            dx_ptr,
            dy_ptr,
            z_ptr,
            c_ptr,
            pid_batch,
            feature_offsets,
            n_offsets,
            n_features,
            n_states,
            n_outputs,
            GELU,
        )
        a_re, a_im = _load_pair(a_ptr, offsets, mask)
        ds_re = a_re * g_re + a_im * g_im
        ds_im = a_re * g_im - a_im * g_re
        if p_ptr is not None:
            q_re, q_im = _load_pair(q_ptr, offsets, mask)
            ds_re += 2 * q_re * dr[:, None]
            ds_im -= 2 * q_im * dr[:, None]
        state_offsets = _pair_offsets(pid_batch, feature_offsets, n_offsets, n_features, n_states)
        _store_pair(dstate_ptr, state_offsets, ds_re, ds_im, mask)


@triton.jit
def parameter_gradients_kernel(
    dy_ptr,
    dx_ptr,
    u_ptr,
    state_ptr,
    z_ptr,
    x_ptr,
    c_ptr,
    r_ptr,
    dr_ptr,
    da_ptr,
    db_ptr,
    dp_ptr,
    dq_ptr,
    dc_ptr,
    dskip_ptr,
    n_batch,
    n_features,
    n_states,
    n_outputs,
    u_batch_stride,
    u_feature_stride,
    GELU: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Compute da, db, dp, dq, dc and dd (``dskip_ptr``)."""
    feature_offsets = tl.program_id(0) * BLOCK_H + tl.arange(0, BLOCK_H)
    n_offsets = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    feature_mask = feature_offsets < n_features
    mask = feature_mask[:, None] & (n_offsets < n_states)[None, :]
    offsets = _pair_offsets(0, feature_offsets, n_offsets, n_features, n_states)
    da_re = tl.zeros([BLOCK_H, BLOCK_N], tl.float32)
    da_im = tl.zeros([BLOCK_H, BLOCK_N], tl.float32)
    db_re = tl.zeros([BLOCK_H, BLOCK_N], tl.float32)
    db_im = tl.zeros([BLOCK_H, BLOCK_N], tl.float32)
    dp_re = tl.zeros([BLOCK_H, BLOCK_N], tl.float32)
    dp_im = tl.zeros([BLOCK_H, BLOCK_N], tl.float32)
    dq_re = tl.zeros([BLOCK_H, BLOCK_N], tl.float32)
    dq_im = tl.zeros([BLOCK_H, BLOCK_N], tl.float32)
    for batch in range(0, n_batch):
        g_re, g_im = _state_gradient(
            dx_ptr, dy_ptr, z_ptr, c_ptr, batch, feature_offsets, n_offsets, n_features, n_states, n_outputs, GELU
        )
        s_re, s_im = _load_pair(state_ptr, _pair_offsets(batch, feature_offsets, n_offsets, n_features, n_states), mask)
        u = _input(u_ptr, batch, feature_offsets, feature_mask, u_batch_stride, u_feature_stride)
        da_re += s_re * g_re + s_im * g_im
        da_im += s_re * g_im - s_im * g_re
        db_re += u[:, None] * g_re
        db_im += u[:, None] * g_im
        if dp_ptr is not None:
            r = tl.load(r_ptr + batch * n_features + feature_offsets, feature_mask, other=0.0)
            dr = tl.load(dr_ptr + batch * n_features + feature_offsets, feature_mask, other=0.0)
            dp_re -= r[:, None] * g_re
            dp_im -= r[:, None] * g_im
            dq_re += 2 * dr[:, None] * s_re
            dq_im -= 2 * dr[:, None] * s_im
    _store_pair(da_ptr, offsets, da_re, da_im, mask)
    _store_pair(db_ptr, offsets, db_re, db_im, mask)
    if dp_ptr is not None:
        _store_pair(dp_ptr, offsets, dp_re, dp_im, mask)
        _store_pair(dq_ptr, offsets, dq_re, dq_im, mask)
    for output in range(0, n_outputs):
        dc_re = tl.zeros([BLOCK_H, BLOCK_N], tl.float32)
        dc_im = tl.zeros([BLOCK_H, BLOCK_N], tl.float32)
        dskip = tl.zeros([BLOCK_H], tl.float32)
        for batch in range(0, n_batch):
            dz = _output_gradient(dy_ptr, z_ptr, batch * n_outputs + output, feature_offsets, n_features, GELU)
            x_re, x_im = _load_pair(x_ptr, _pair_offsets(batch, feature_offsets, n_offsets, n_features, n_states), mask)
            dc_re += 2 * dz[:, None] * x_re
            dc_im -= 2 * dz[:, None] * x_im
            dskip += dz * _input(u_ptr, batch, feature_offsets, feature_mask, u_batch_stride, u_feature_stride)
        _store_pair(dc_ptr, _pair_offsets(output, feature_offsets, n_offsets, n_features, n_states), dc_re, dc_im, mask)
        # The programs of all blocks of states compute the same sum, so only one writes it.
        tl.store(dskip_ptr + output * n_features + feature_offsets, dskip, feature_mask & (tl.program_id(1) == 0))


@triton.jit
def _state_gradient(
    dx_ptr,
    dy_ptr,
    z_ptr,
    c_ptr,
    batch,
    feature_offsets,
    n_offsets,
    n_features,
    n_states,
    n_outputs,
    GELU: tl.constexpr,
):
    """Return the real and imaginary parts of ξ, with zeros for masked features and states."""
    mask = (feature_offsets < n_features)[:, None] & (n_offsets < n_states)[None, :]
    g_re, g_im = _load_pair(dx_ptr, _pair_offsets(batch, feature_offsets, n_offsets, n_features, n_states), mask)
    for output in range(0, n_outputs):
        dz = _output_gradient(dy_ptr, z_ptr, batch * n_outputs + output, feature_offsets, n_features, GELU)
        c_re, c_im = _load_pair(c_ptr, _pair_offsets(output, feature_offsets, n_offsets, n_features, n_states), mask)
        g_re += 2 * dz[:, None] * c_re
        g_im -= 2 * dz[:, None] * c_im
    return g_re, g_im


@triton.jit
def _output_gradient(dy_ptr, z_ptr, row, feature_offsets, n_features, GELU: tl.constexpr):
    """Return dz, (BLOCK_H,), of one output of one batch element; ``row`` is batch element · M + output."""
    offsets = row * n_features + feature_offsets
    dz = tl.load(dy_ptr + offsets, feature_offsets < n_features, other=0.0).to(tl.float32)
    if GELU:
        z = tl.load(z_ptr + offsets, feature_offsets < n_features, other=0.0)
        # The derivative of z Φ(z) is Φ(z) + z exp(-z²/2) / √(2π).
        dz *= _normal_distribution(z) + z * 0.3989422804014327 * tl.exp(-0.5 * z * z)
    return dz


@triton.jit
def _normal_distribution(z):
    """Return Φ(z), the factor of z in the exact GELU."""
    return 0.5 * (1 + tl.erf(z * 0.7071067811865476))


@triton.jit
def _real_product(q_ptr, state_ptr, pid_batch, feature_offsets, n_features, n_states, BLOCK_N: tl.constexpr):
    """Return r = 2 Re Σ_n q s."""
    r = tl.zeros_like(feature_offsets).to(tl.float32)
    for start in range(0, n_states, BLOCK_N):
        n_offsets = start + tl.arange(0, BLOCK_N)
        mask = (feature_offsets < n_features)[:, None] & (n_offsets < n_states)[None, :]
        q_re, q_im = _load_pair(q_ptr, _pair_offsets(0, feature_offsets, n_offsets, n_features, n_states), mask)
        s_re, s_im = _load_pair(
            state_ptr, _pair_offsets(pid_batch, feature_offsets, n_offsets, n_features, n_states), mask
        )
        r += 2 * tl.sum(q_re * s_re - q_im * s_im, 1)
    return r


@triton.jit
def _input(u_ptr, batch, feature_offsets, feature_mask, batch_stride, feature_stride):
    """Return u of one batch element, float32 (BLOCK_H,), with zeros for masked features."""
    offsets = tl.cast(batch, tl.int64) * batch_stride + feature_offsets.to(tl.int64) * feature_stride
    return tl.load(u_ptr + offsets, feature_mask, other=0.0).to(tl.float32)


@triton.jit
def _pair_offsets(row, feature_offsets, n_offsets, n_features, n_states):
    """Return the offsets of the pairs of a tile (features, states) in a contiguous tensor (rows, H, N, 2)."""
    return 2 * ((row * n_features + feature_offsets.to(tl.int64)[:, None]) * n_states + n_offsets[None, :])


@triton.jit
def _load_pair(ptr, offsets, mask):
    return tl.load(ptr + offsets, mask, other=0.0), tl.load(ptr + offsets + 1, mask, other=0.0)


@triton.jit
def _store_pair(ptr, offsets, re, im, mask):
    tl.store(ptr + offsets, re, mask)
    tl.store(ptr + offsets + 1, im, mask)
