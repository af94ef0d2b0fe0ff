"""Symmetric Cauchy sums at imaginary nodes: the terms of S4's generating function (arXiv 2111.00396, lemma C.3).

For rows r of vectors v, poles λ = σ + iω and nodes z = iy,

    S[r, k] = Σ_n v[r, n] / (z[k] - λ[n]) + v[r, n]* / (z[k] - λ[n]*).

With f = 1/(z-λ) = (-σ - iδ)/(σ² + δ²), δ = y - ω, and g = 1/(z-λ*), the same with δ = y + ω, the two terms are

    Re: Re v (Re f + Re g) + Im v (Im g - Im f)        Im: Re v (Im f + Im g) + Im v (Re f - Re g).

Near a pole, δ determines the accuracy. y and ω are therefore sums of two float32 numbers, high + low, and
δ = (y_high - ω_high) + (y_low - ω_low). The first difference is exact for close numbers, so δ has float32 accuracy at
any distance. Matrix units would not help: there are few rows R, and loading the terms would take longer than the sums.

In the backward pass, with the gradient s of S, the gradient of v is Σ_k f* s + g s* and the gradient of λ is
Σ_r v*[r] Σ_k f*² s[r] + g² s*[r]. One pass over the nodes computes both. No tensor of size N · K is stored in either
direction, and one program computes each sum over k without atomics.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sashimi_kernels.derivatives import no_second_derivative
from sashimi_kernels.triton_backend.launch import Launch, launch

TILE = {"ROWS": 4, "BLOCK_K": 256}


@triton.jit
def _resolvents(pole_ptr, y_high, y_low):
    """Return the real and imaginary parts of f and g of one pole at the nodes y, each in the shape of y."""
    sigma, omega_high, omega_low = tl.load(pole_ptr), tl.load(pole_ptr + 1), tl.load(pole_ptr + 2)
    below = (y_high - omega_high) + (y_low - omega_low)
    above = (y_high + omega_high) + (y_low + omega_low)
    f = -1.0 / (sigma * sigma + below * below)
    g = -1.0 / (sigma * sigma + above * above)
    return sigma * f, below * f, sigma * g, above * g


@triton.jit
def cauchy_kernel(
    vectors_ptr,  # (R, H, N, 2)
    poles_ptr,  # (H, N, 3): σ, ω high, ω low
    nodes_ptr,  # (K, 2): y high, y low
    sums_ptr,  # (R, H, K, 2)
    n_rows,
    n_features,
    n_states,
    n_nodes,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    pid_k, pid_h, pid_r = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    k_offsets = pid_k * BLOCK_K + tl.arange(0, BLOCK_K)[None, :]
    k_mask = k_offsets < n_nodes
    y_high = tl.load(nodes_ptr + 2 * k_offsets, mask=k_mask, other=0.0)
    y_low = tl.load(nodes_ptr + 2 * k_offsets + 1, mask=k_mask, other=0.0)
    row_offsets = pid_r * ROWS + tl.arange(0, ROWS)[:, None]
    row_mask = row_offsets < n_rows
    row_offsets = row_offsets.to(tl.int64) * n_features + pid_h
    vector_ptrs = vectors_ptr + row_offsets * n_states * 2
    real = tl.zeros((ROWS, BLOCK_K), dtype=tl.float32)
    imag = tl.zeros((ROWS, BLOCK_K), dtype=tl.float32)
    for n in range(n_states):
        f_real, f_imag, g_real, g_imag = _resolvents(poles_ptr + (pid_h * n_states + n) * 3, y_high, y_low)
        v_real = tl.load(vector_ptrs + 2 * n, mask=row_mask, other=0.0)
        v_imag = tl.load(vector_ptrs + 2 * n + 1, mask=row_mask, other=0.0)
        real += v_real * (f_real + g_real) + v_imag * (g_imag - f_imag)
        imag += v_real * (f_imag + g_imag) + v_imag * (f_real - g_real)
    sum_ptrs = sums_ptr + (row_offsets * n_nodes + k_offsets) * 2
    tl.store(sum_ptrs, real, mask=row_mask & k_mask)
    tl.store(sum_ptrs + 1, imag, mask=row_mask & k_mask)


@triton.jit
def cauchy_backward_kernel(
    gradient_ptr,  # (R, H, K, 2)
    poles_ptr,  # (H, N, 3): σ, ω high, ω low
    nodes_ptr,  # (K, 2): y high, y low
    dvectors_ptr,  # (R, H, N, 2): Σ_k f* s + g s*
    slopes_ptr,  # (R, H, N, 2): Σ_k f*² s + g² s*
    n_rows,
    n_features,
    n_states,
    n_nodes,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    pid_n, pid_h, pid_r = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row_offsets = pid_r * ROWS + tl.arange(0, ROWS)[:, None]
    row_mask = row_offsets < n_rows
    row_offsets = row_offsets.to(tl.int64) * n_features + pid_h
    real = tl.zeros((ROWS, BLOCK_K), dtype=tl.float32)
    imag = tl.zeros((ROWS, BLOCK_K), dtype=tl.float32)
    slope_real = tl.zeros((ROWS, BLOCK_K), dtype=tl.float32)
    slope_imag = tl.zeros((ROWS, BLOCK_K), dtype=tl.float32)
    for start in range(0, n_nodes, BLOCK_K):
        k_offsets = start + tl.arange(0, BLOCK_K)[None, :]
        k_mask = k_offsets < n_nodes
        # Padding nodes must not be poles: infinity times the zeros below would be NaN.
        y_high = tl.load(nodes_ptr + 2 * k_offsets, mask=k_mask, other=1e9)
        y_low = tl.load(nodes_ptr + 2 * k_offsets + 1, mask=k_mask, other=0.0)
        f_real, f_imag, g_real, g_imag = _resolvents(poles_ptr + (pid_h * n_states + pid_n) * 3, y_high, y_low)
        gradient_ptrs = gradient_ptr + (row_offsets * n_nodes + k_offsets) * 2
        s_real = tl.load(gradient_ptrs, mask=row_mask & k_mask, other=0.0)
        s_imag = tl.load(gradient_ptrs + 1, mask=row_mask & k_mask, other=0.0)
        real += s_real * (f_real + g_real) + s_imag * (f_imag + g_imag)
        imag += s_real * (g_imag - f_imag) + s_imag * (f_real - g_real)
        f_real, f_imag = f_real * f_real - f_imag * f_imag, 2 * f_real * f_imag
        g_real, g_imag = g_real * g_real - g_imag * g_imag, 2 * g_real * g_imag
        slope_real += s_real * (f_real + g_real) + s_imag * (f_imag + g_imag)
        slope_imag += s_real * (g_imag - f_imag) + s_imag * (f_real - g_real)
    out_offsets = (row_offsets * n_states + pid_n) * 2
    tl.store(dvectors_ptr + out_offsets, tl.sum(real, 1, keep_dims=True), mask=row_mask)
    tl.store(dvectors_ptr + out_offsets + 1, tl.sum(imag, 1, keep_dims=True), mask=row_mask)
    tl.store(slopes_ptr + out_offsets, tl.sum(slope_real, 1, keep_dims=True), mask=row_mask)
    tl.store(slopes_ptr + out_offsets + 1, tl.sum(slope_imag, 1, keep_dims=True), mask=row_mask)


@torch.library.custom_op("sashimi_kernels::cauchy_sums", mutates_args=())
def cauchy_sums(vectors: Tensor, poles: Tensor, nodes: Tensor) -> Tensor:
    """Return the Cauchy sums S. The last axis of 2 contains real and imaginary parts.

    Args:
        vectors: v, float32 (R, H, N, 2).
        poles: λ, float64 (H, N, 2).
        nodes: y, float64 (K,).

    Returns:
        float32 (R, H, K, 2).
    """
    (n_rows, n_features), n_nodes = vectors.shape[:2], nodes.shape[0]
    sums = vectors.new_empty((n_rows, n_features, n_nodes, 2))
    inputs = {"vectors_ptr": vectors.contiguous(), **_split_numbers(poles, nodes)}
    grid = (triton.cdiv(n_nodes, TILE["BLOCK_K"]), n_features, triton.cdiv(n_rows, TILE["ROWS"]))
    launch(cauchy_kernel, grid, {**inputs, "sums_ptr": sums, **_sizes(vectors, nodes)}, TILE)
    return sums


@torch.library.custom_op("sashimi_kernels::cauchy_sums_backward", mutates_args=())
def cauchy_sums_backward(gradient: Tensor, vectors: Tensor, poles: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of vectors, float32 (R, H, N, 2), and of poles, float64 (H, N, 2)."""
    n_rows, n_features, n_states, _ = vectors.shape
    dvectors, slopes = vectors.new_empty(vectors.shape), vectors.new_empty(vectors.shape)
    inputs = {"gradient_ptr": gradient.contiguous(), **_split_numbers(poles, nodes)}
    outputs = {"dvectors_ptr": dvectors, "slopes_ptr": slopes}
    grid = (n_states, n_features, triton.cdiv(n_rows, TILE["ROWS"]))
    launch(cauchy_backward_kernel, grid, {**inputs, **outputs, **_sizes(vectors, nodes)}, TILE)
    v, slopes = (torch.view_as_complex(x.contiguous()) for x in (vectors, slopes))
    # torch.compile would ignore a lazy conj() here.
    return dvectors, torch.view_as_real((v.conj_physical() * slopes).sum(0).to(torch.complex128))


@cauchy_sums.register_fake
def _(vectors: Tensor, poles: Tensor, nodes: Tensor) -> Tensor:
    return vectors.new_empty((*vectors.shape[:2], nodes.shape[0], 2))


@cauchy_sums_backward.register_fake
def _(gradient: Tensor, vectors: Tensor, poles: Tensor, nodes: Tensor) -> tuple[Tensor, Tensor]:
    return vectors.new_empty(vectors.shape), poles.new_empty(poles.shape)


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
    return *cauchy_sums_backward(gradient, *ctx.saved_tensors), None


cauchy_sums.register_autograd(_backward, setup_context=_keep)
cauchy_sums_backward.register_autograd(no_second_derivative("nplr_kernel"))


def launches() -> Iterator[Launch]:
    """Yield every form in which the kernels of this module are launched."""
    sizes = dict.fromkeys(("n_rows", "n_features", "n_states", "n_nodes"), "i32")
    forward = dict.fromkeys(("vectors_ptr", "poles_ptr", "nodes_ptr", "sums_ptr"), "*fp32")
    yield Launch(cauchy_kernel, {**forward, **sizes}, TILE, 4, 2, matrix=False)
    backward = dict.fromkeys(("gradient_ptr", "poles_ptr", "nodes_ptr", "dvectors_ptr", "slopes_ptr"), "*fp32")
    yield Launch(cauchy_backward_kernel, {**backward, **sizes}, TILE, 4, 2, matrix=False)


def _split_numbers(poles: Tensor, nodes: Tensor) -> dict[str, Tensor]:
    real, imag = poles.unbind(-1)
    split = torch.cat([real.float().unsqueeze(-1), _split(imag)], dim=-1)
    return {"poles_ptr": split, "nodes_ptr": _split(nodes)}


def _split(x: Tensor) -> Tensor:
    """Return float64 numbers as float32 numbers and float32 remainders, (..., 2)."""
    high = x.float()
    return torch.stack([high, (x - high.double()).float()], dim=-1)


def _sizes(vectors: Tensor, nodes: Tensor) -> dict[str, int]:
    n_rows, n_features, n_states, _ = vectors.shape
    return {"n_rows": n_rows, "n_features": n_features, "n_states": n_states, "n_nodes": nodes.shape[0]}
