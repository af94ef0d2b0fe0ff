"""Gradients of the operators of the chunked convolution: sums over all chunks, one program per tile, without atomics.

With the signal U, its states S, the gradient dY of the output and the adjoint states G of ``chunk_kernels``,

    dlags[l] = Σ dY[c, i] U[c, i-l]    dread = Σ dY[c]ᵀ S[c]    dwrite = Σ U[c]ᵀ G[c]    dΛ = Σ G[c] S[c]*
"""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from sashimi_kernels.torch_backend.convolution import CHUNK
from sashimi_kernels.triton_backend.arguments import FLOATS, form, pointers
from sashimi_kernels.triton_backend.chunk_kernels import (
    BLOCK_STATE,
    LARGE,
    load_samples,
    matrix_form,
    matrix_precision,
    row_strides,
    times,
)
from sashimi_kernels.triton_backend.launch import Launch, launch

_PRODUCTS = {"CHUNK": CHUNK, "COLUMNS": BLOCK_STATE, "BLOCK_K": 16}
_DECAY = {"ROWS": 64, "COLUMNS": BLOCK_STATE}


def lag_gradient(dy: Tensor, u: Tensor) -> Tensor:
    """Return Σ dY[c, i] U[c, i-l] over all chunks c and samples i for the lags l = 1-T … T-1: float32 (H, 2T-1)."""
    layout = {"other_pitch": CHUNK, "other_limit": u.shape[-1], **row_strides(other=u)}
    products = _chunk_products(dy, u, CHUNK, layout).flip(-1)  # (H, T, T): i, T-1 - j
    # The diagonals i - j = l become columns: if rows of 2T elements are read as rows of 2T-1 elements, each row is
    # shifted to the right by one element more than the row above.
    skewed = torch.nn.functional.pad(products, (0, CHUNK)).flatten(1)[:, :-CHUNK]
    return skewed.unflatten(1, (CHUNK, 2 * CHUNK - 1)).sum(1)


def operator_gradient(signal: Tensor, states: Tensor) -> Tensor:
    """Return Σ signal[c, t] states[c, k] over all chunks: the gradient of read for dY and S, of write for U and G.

    Args:
        signal: (B, H, L), contiguous along L.
        states: float32 (B, H, chunks, K).

    Returns:
        float32 (H, T, K).
    """
    n_chunks, width = states.shape[2:]
    layout = {"other_pitch": width, "other_limit": n_chunks * width, **row_strides(other=states)}
    return _chunk_products(signal, states, width, layout)


def decay_gradient(states: Tensor, adjoint_states: Tensor) -> Tensor:
    """Return Σ G S* over all chunks: float32 (H, K)."""
    n_batch, n_features, n_chunks, width = states.shape
    gradient = states.new_empty(n_features, width)
    tensors = pointers(states=states, adjoint=adjoint_states, gradient=gradient)
    sizes = {"n_rows": n_batch * n_chunks, "n_chunks": n_chunks, "width": width}
    launch(decay_gradient_kernel, (width // BLOCK_STATE, n_features), {**tensors, **sizes}, _DECAY)
    return gradient


def launches() -> Iterator[Launch]:
    """Yield every form in which the kernels of this module are launched."""
    strides = [f"{name}_{axis}_stride" for name in ("signal", "other") for axis in ("batch", "feature")]
    sizes = ("length", "width", "n_rows", "other_pitch", "other_limit", *strides)
    for dtype in FLOATS:
        constants = {**_PRODUCTS, "PRECISION": matrix_precision(dtype)}
        for other in dict.fromkeys((dtype, "*fp32")):
            tensors = pointers(signal=dtype, other=other, products="*fp32")
            yield matrix_form(chunk_products_kernel, tensors, sizes, constants, **LARGE)
    types = pointers(states="*fp32", adjoint="*fp32", gradient="*fp32")
    yield form(decay_gradient_kernel, {**types, **dict.fromkeys(("n_rows", "n_chunks", "width"), "i32")}, _DECAY, 4)


@triton.jit
def chunk_products_kernel(
    signal_ptr,
    other_ptr,
    products_ptr,
    length,
    width,
    n_rows,
    other_pitch,
    other_limit,
    signal_batch_stride,
    signal_feature_stride,
    other_batch_stride,
    other_feature_stride,
    CHUNK: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Compute products[h, t, k] = Σ signal[t] other[k] over the rows: the chunks of all batch elements.

    ``other_pitch`` is the distance from one chunk to the next in ``other``, ``other_limit`` the number of elements of
    ``other`` per batch element and feature.
    """
    pid_column, pid_h = tl.program_id(0) * COLUMNS, tl.program_id(1).to(tl.int64)
    n_chunks = tl.cdiv(length, CHUNK)
    width = tl.multiple_of(width, COLUMNS)
    position_offsets, column_offsets = tl.arange(0, CHUNK), pid_column + tl.arange(0, COLUMNS)
    signal_ptr += pid_h * signal_feature_stride
    other_ptr += pid_h * other_feature_stride
    products = tl.zeros((CHUNK, COLUMNS), dtype=tl.float32)
    for row_start in range(0, n_rows, BLOCK_K):
        rows = row_start + tl.arange(0, BLOCK_K)
        row_mask = rows < n_rows
        batches, chunks = (rows // n_chunks).to(tl.int64), rows % n_chunks
        remaining = tl.where(row_mask, length - chunks * CHUNK, 0)
        samples = load_samples(signal_ptr, batches * signal_batch_stride + chunks * CHUNK, position_offsets, remaining)
        remaining = tl.where(row_mask, other_limit - chunks * other_pitch, 0)
        other_offsets = batches * other_batch_stride + chunks * other_pitch
        other = load_samples(other_ptr, other_offsets, column_offsets, remaining)
        products = tl.dot(tl.trans(samples.to(other.dtype)), other, products, input_precision=PRECISION)
    product_ptrs = products_ptr + (pid_h * CHUNK + position_offsets[:, None]) * width + column_offsets[None, :]
    tl.store(product_ptrs, products)


@triton.jit
def decay_gradient_kernel(
    states_ptr,
    adjoint_ptr,
    gradient_ptr,
    n_rows,
    n_chunks,
    width,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """Compute gradient[h, k] = Σ G S* over the rows: the chunks of all batch elements."""
    pid_column, pid_h = tl.program_id(0) * COLUMNS, tl.program_id(1).to(tl.int64)
    n_features = tl.num_programs(1)
    width = tl.multiple_of(width, COLUMNS)
    column_offsets = pid_column + tl.arange(0, COLUMNS)
    real = tl.zeros((ROWS, COLUMNS // 2), dtype=tl.float32)
    imag = tl.zeros((ROWS, COLUMNS // 2), dtype=tl.float32)
    for row_start in range(0, n_rows, ROWS):
        rows = row_start + tl.arange(0, ROWS)
        batches, chunks = (rows // n_chunks).to(tl.int64), rows % n_chunks
        offsets = (((batches * n_features + pid_h) * n_chunks + chunks) * width)[:, None] + column_offsets[None, :]
        mask = (rows < n_rows)[:, None]
        state = tl.load(states_ptr + offsets, mask=mask, other=0.0)
        adjoint = tl.load(adjoint_ptr + offsets, mask=mask, other=0.0)
        state_real, state_imag = tl.split(tl.reshape(state, (ROWS, COLUMNS // 2, 2)))
        adjoint_real, adjoint_imag = tl.split(tl.reshape(adjoint, (ROWS, COLUMNS // 2, 2)))
        product_real, product_imag = times(adjoint_real, adjoint_imag, state_real, -state_imag)
        real += product_real
        imag += product_imag
    gradient_ptrs = gradient_ptr + pid_h * width + pid_column + 2 * tl.arange(0, COLUMNS // 2)
    tl.store(gradient_ptrs, tl.sum(real, 0))
    tl.store(gradient_ptrs + 1, tl.sum(imag, 0))


def _chunk_products(signal: Tensor, other: Tensor, width: int, layout: dict[str, int]) -> Tensor:
    n_batch, n_features, length = signal.shape
    products = signal.new_empty((n_features, CHUNK, width), dtype=torch.float32)
    sizes = {"length": length, "width": width, "n_rows": n_batch * triton.cdiv(length, CHUNK), **layout}
    arguments = {**pointers(signal=signal, other=other, products=products), **sizes, **row_strides(signal=signal)}
    constants = {**_PRODUCTS, "PRECISION": matrix_precision(signal.dtype)}
    launch(chunk_products_kernel, (width // BLOCK_STATE, n_features), arguments, constants, **LARGE)
    return products
