"""Gradients of the operators of the chunked convolution: sums over all chunks, in one kernel, without atomics.

With the signal U, its states S, the gradient dY of the output and the adjoint states Z of the chunks c,

    dlags[l] = Σ dY[c, i] U[c, i-l]    dwrite = Σ U[c]ᵀ Z[c]    dread = Σ dY[c]ᵀ S[c]    dadvance = Σ S[c]ᵀ Z[c]

Every program computes one tile of 128 × BLOCK numbers of one of these products, and for ``advance`` the sum over the
directions. A tile of dYᵀ U is reduced to sums along its diagonals; PyTorch adds those of all tiles.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sashimi_kernels.chunks import CHUNK
from sashimi_kernels.triton_backend.arguments import FLOATS, is_single, matrix_precision, multiple, pointers
from sashimi_kernels.triton_backend.chunk_tiles import (
    COLUMNS,
    MULTIPLE,
    TARGETS,
    architecture,
    load_samples,
    matrix_form,
    signal_sizes,
)
from sashimi_kernels.triton_backend.launch import Launch, launch


def operator_gradients(
    u: Tensor, dy: Tensor, states: Tensor, adjoint_states: Tensor, n: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of lags (H, 2T-1), write and read (H, T, D·n) and advance (H, n, n), float32.

    Args:
        u, dy: (B, H, L) of one dtype, contiguous along L.
        states, adjoint_states: of u and of dy, (B, H, chunks, D·n) in the same dtype, with n a multiple of 64.
        n: real states per direction.
    """
    n_batch, n_features, _ = u.shape
    n_chunks, width = states.shape[2:]
    constants, options = _constants(u.dtype, architecture(u.device))
    lag_tiles = CHUNK // constants["BLOCK"]
    lags = u.new_empty((n_features, lag_tiles, 2 * CHUNK), dtype=torch.float32)
    write, read = (u.new_empty((n_features, CHUNK, width), dtype=torch.float32) for _ in range(2))
    advance = u.new_empty((n_features, n, n), dtype=torch.float32)
    inputs = pointers(u=u, dy=dy, states=states, adjoint=adjoint_states)
    outputs = pointers(lags=lags, write=write, read=read, advance=advance)
    sizes = {"direction_width": n, "width": width, "n_rows": n_batch * n_chunks, **signal_sizes(u=u, dy=dy)}
    grid = (lag_tiles + (2 * width + n) // constants["BLOCK"], n_features)
    launch(chunk_products_kernel, grid, {**inputs, **outputs, **sizes}, constants, **options)
    return lags.sum(1)[:, :-1].contiguous(), write, read, advance


def _constants(dtype: torch.dtype | str, name: str) -> tuple[dict[str, Any], dict[str, int]]:
    """Return constants and launch options for an architecture."""
    rows = {"ampere": 16, "rdna": 16}.get(name, 32) if is_single(dtype) else {"rdna": 32}.get(name, 64)
    block = COLUMNS // 2 if rows == 16 else COLUMNS
    tile = {"CHUNK": CHUNK, "ROWS": rows, "BLOCK": block}
    constants = {**tile, "MULTIPLE": MULTIPLE, "PRECISION": matrix_precision(dtype)}
    return constants, {"num_warps": 8, "num_stages": 2}


def launches() -> Iterator[Launch]:
    """Yield every form in which the kernel of this module is launched."""
    strides = [f"{name}_{axis}_stride" for name in ("u", "dy") for axis in ("batch", "feature")]
    integers = ("direction_width", "width", "n_rows", "length", *strides)
    for dtype, name in itertools.product(FLOATS, TARGETS):
        inputs = pointers(u=dtype, dy=dtype, states=dtype, adjoint=dtype)
        outputs = pointers(lags="*fp32", write="*fp32", read="*fp32", advance="*fp32")
        constants, options = _constants(dtype, name)
        yield matrix_form(chunk_products_kernel, {**inputs, **outputs}, integers, constants, options, (name,))


@triton.jit
def chunk_products_kernel(
    u_ptr,
    dy_ptr,
    states_ptr,
    adjoint_ptr,
    lags_ptr,
    write_ptr,
    read_ptr,
    advance_ptr,
    direction_width,
    width,
    n_rows,
    length,
    u_batch_stride,
    u_feature_stride,
    dy_batch_stride,
    dy_feature_stride,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    MULTIPLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    pid, pid_h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    n_features = tl.num_programs(1)
    direction_width, width = multiple(direction_width, BLOCK), multiple(width, BLOCK)
    length = multiple(length, MULTIPLE)
    u_batch_stride, u_feature_stride = multiple(u_batch_stride, MULTIPLE), multiple(u_feature_stride, MULTIPLE)
    dy_batch_stride, dy_feature_stride = multiple(dy_batch_stride, MULTIPLE), multiple(dy_feature_stride, MULTIPLE)
    n_chunks = tl.cdiv(length, CHUNK)
    u_ptr = tl.multiple_of(u_ptr + pid_h * u_feature_stride, 2 * MULTIPLE)
    dy_ptr = tl.multiple_of(dy_ptr + pid_h * dy_feature_stride, 2 * MULTIPLE)
    states_ptr = tl.multiple_of(states_ptr + pid_h * n_chunks * width, 16)
    adjoint_ptr = tl.multiple_of(adjoint_ptr + pid_h * n_chunks * width, 16)
    state_stride = n_features.to(tl.int64) * n_chunks * width
    one = tl.full((), 1, tl.int64)
    lag_tiles, state_tiles = CHUNK // BLOCK, width // BLOCK
    is_lags, is_write = pid < lag_tiles, (pid >= lag_tiles) & (pid < lag_tiles + state_tiles)
    is_read = (pid >= lag_tiles + state_tiles) & (pid < lag_tiles + 2 * state_tiles)
    is_advance = pid >= lag_tiles + 2 * state_tiles
    tile = pid - tl.where(is_lags, 0, tl.where(is_write, lag_tiles, lag_tiles + state_tiles * tl.where(is_read, 1, 2)))
    left_ptr, left_stride, left_pitch, left_size = u_ptr, u_batch_stride * one, CHUNK, length
    if is_read:
        left_ptr, left_stride = dy_ptr, dy_batch_stride * one
    if is_advance:
        left_ptr, left_stride, left_pitch, left_size = states_ptr, state_stride, width, n_chunks * width
    right_ptr, right_stride, right_pitch, right_size = adjoint_ptr, state_stride, width, n_chunks * width
    if is_read:
        right_ptr = states_ptr
    if is_lags:
        right_ptr, right_stride, right_pitch, right_size = dy_ptr, dy_batch_stride * one, CHUNK, length
    left_columns, right_columns = tl.arange(0, CHUNK), tile * BLOCK + tl.arange(0, BLOCK)
    products = tl.zeros((CHUNK, BLOCK), dtype=tl.float32)
    for direction in range(tl.where(is_advance, width // direction_width, 1)):
        for start in range(0, n_rows, ROWS):
            rows = start + tl.arange(0, ROWS)
            mask = rows < n_rows
            batches, chunks = (rows // n_chunks).to(tl.int64), rows % n_chunks
            offsets = batches * left_stride + chunks * left_pitch
            left = load_samples(
                left_ptr, offsets, direction * direction_width + left_columns, left_size - chunks * left_pitch, mask
            )
            offsets = batches * right_stride + chunks * right_pitch
            right = load_samples(
                right_ptr, offsets, direction * direction_width + right_columns, right_size - chunks * right_pitch, mask
            )
            products = tl.dot(tl.trans(left), right, products, input_precision=PRECISION)
    if is_lags:
        _store_lags(lags_ptr + (pid_h * lag_tiles + tile) * 2 * CHUNK, products, tile * BLOCK, CHUNK, BLOCK)
    else:
        pitch, height = tl.where(is_advance, direction_width, width), tl.where(is_advance, direction_width, CHUNK)
        out_ptr = write_ptr
        if is_read:
            out_ptr = read_ptr
        if is_advance:
            out_ptr = advance_ptr
        offsets = left_columns[:, None] * pitch + right_columns[None, :]
        tl.store(out_ptr + pid_h * height * pitch + offsets, products, mask=(left_columns < height)[:, None])


@triton.jit
def _store_lags(lags_ptr, products, first, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """Store the sums of the tile (samples j, outputs first + i) along its diagonals, by the lag first + i - j."""
    samples, outputs = tl.arange(0, CHUNK)[:, None], tl.arange(0, BLOCK)[None, :]
    for part in tl.static_range(0, 2 * CHUNK, BLOCK):
        source = part + outputs - (CHUNK - 1) + samples - first
        exists = (source >= 0) & (source < BLOCK)
        shifted = tl.gather(products, tl.where(exists, source, 0), 1)
        tl.store(lags_ptr + part + tl.arange(0, BLOCK), tl.sum(tl.where(exists, shifted, 0.0), 0))
