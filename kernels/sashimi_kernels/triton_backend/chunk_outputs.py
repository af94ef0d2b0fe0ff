"""Outputs of the chunks of a signal from its samples and states: one product with two pairs of operands.

    Y[c] = U[c] · Toeplitz(lags) + S[c] · readᵀ

The tile of the Toeplitz matrix is gathered from the lags and, like the tile of ``read``, once per program: a program
computes several blocks of rows (chunks of any batch element) of one feature. In float32 the split operands do not fit
on the chip, so blocks of them are loaded for each block of rows. The gradient of the signal has the same form with
flipped lags, write instead of read and the adjoint states.
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
    MULTIPLE,
    TARGETS,
    architecture,
    load_samples,
    matrix_form,
    signal_sizes,
)
from sashimi_kernels.triton_backend.launch import Launch, launch

_WIDTH = 128
# Programs of a launch, if there are so many blocks of rows: two on each multiprocessor of an H100.
_PROGRAMS = 264


def chunk_outputs(signal: Tensor, lags: Tensor, read: Tensor, states: Tensor, flipped: bool = False) -> Tensor:
    """Return the signal times the Toeplitz matrix of the lags plus the contributions of the states.

    Args:
        signal: (B, H, L), contiguous along L.
        lags: float32 (H, 2T-1).
        read: float32 (H, T, D·n), with n a multiple of 64.
        states: result of :func:`chunk_states`, (B, H, chunks, D·n).
        flipped: use the lags in the opposite order.

    Returns:
        (B, H, L) in the dtype of ``signal``.
    """
    n_batch, n_features, _ = signal.shape
    y = signal.new_empty(signal.shape)
    n_rows, width = n_batch * states.shape[2], states.shape[3]
    constants, options = _constants(signal.dtype, architecture(signal.device), width)
    n_blocks = triton.cdiv(n_rows, constants["ROWS"])
    per_program = max(1, min(8, n_blocks * n_features // _PROGRAMS)) if constants["WHOLE"] else 1
    tensors = pointers(signal=signal, lags=lags, read=read, states=states, y=y)
    sizes = {"width": width, "n_rows": n_rows, "flipped": int(flipped)}
    arguments = {**tensors, **sizes, "per_program": per_program, **signal_sizes(signal=signal)}
    launch(chunk_outputs_kernel, (triton.cdiv(n_blocks, per_program), n_features), arguments, constants, **options)
    return y


def _constants(dtype: torch.dtype | str, name: str, width: int) -> tuple[dict[str, Any], dict[str, int]]:
    """Return constants and launch options for an architecture."""
    whole = not is_single(dtype) and width <= _WIDTH and name != "rdna"
    if is_single(dtype):
        rows, block = 128 if name == "hopper" else 64, 16
    else:
        rows, block = 128, _WIDTH if whole else 16 if name == "rdna" else 32
    tile = {"CHUNK": CHUNK, "ROWS": rows, "BLOCK_K": block, "WHOLE": whole}
    constants = {**tile, "MULTIPLE": MULTIPLE, "PRECISION": matrix_precision(dtype)}
    # Without pipelining, two programs with whole tiles fit a multiprocessor of an H100, and float32 fits its registers.
    return constants, {"num_warps": 8, "num_stages": 1 if whole or (rows == 128 and is_single(dtype)) else 2}


def launches() -> Iterator[Launch]:
    """Yield every form in which the kernel of this module is launched."""
    integers = ("width", "n_rows", "flipped", "per_program", "length", "signal_batch_stride", "signal_feature_stride")
    for dtype, name in itertools.product(FLOATS, TARGETS):
        tensors = pointers(signal=dtype, lags="*fp32", read="*fp32", states=dtype, y=dtype)
        both = [_constants(dtype, name, width) for width in (_WIDTH, 2 * _WIDTH)]
        for constants, options in both if both[0] != both[1] else both[:1]:
            yield matrix_form(chunk_outputs_kernel, tensors, integers, constants, options, (name,))


@triton.jit
def chunk_outputs_kernel(
    signal_ptr,
    lags_ptr,
    read_ptr,
    states_ptr,
    y_ptr,
    width,
    n_rows,
    flipped,
    per_program,
    length,
    signal_batch_stride,
    signal_feature_stride,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    WHOLE: tl.constexpr,
    MULTIPLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    pid_h = tl.program_id(1).to(tl.int64)
    n_features = tl.num_programs(1)
    width = multiple(width, 64)
    length, signal_batch_stride = multiple(length, MULTIPLE), multiple(signal_batch_stride, MULTIPLE)
    signal_feature_stride = multiple(signal_feature_stride, MULTIPLE)
    n_chunks = tl.cdiv(length, CHUNK)
    dtype = signal_ptr.dtype.element_ty
    outputs, k_offsets = tl.arange(0, CHUNK), tl.arange(0, BLOCK_K)
    lags_ptr += pid_h * (2 * CHUNK - 1) + CHUNK - 1
    read_ptr = tl.multiple_of(read_ptr + pid_h * CHUNK * width, 16)
    signal_ptr = tl.multiple_of(signal_ptr + pid_h * signal_feature_stride, 2 * MULTIPLE)
    y_ptr = tl.multiple_of(y_ptr + pid_h * length, 2 * MULTIPLE)
    states_ptr = tl.multiple_of(states_ptr + pid_h * n_chunks * width, 16)
    if WHOLE:
        toeplitz = _load_toeplitz(lags_ptr, k_offsets, outputs, flipped).to(dtype)
        read = _load_read(read_ptr, k_offsets, outputs, width).to(dtype)
    for index in range(per_program):
        rows = (tl.program_id(0) * per_program + index) * ROWS + tl.arange(0, ROWS)
        row_mask = rows < n_rows
        batches, chunks = (rows // n_chunks).to(tl.int64), rows % n_chunks
        left = length - chunks * CHUNK
        sample_offsets = batches * signal_batch_stride + chunks * CHUNK
        state_ptrs = states_ptr + (batches * n_features * n_chunks + chunks)[:, None] * width
        if WHOLE:
            samples = load_samples(signal_ptr, sample_offsets, k_offsets, left, row_mask)
            y = tl.dot(samples, toeplitz)
            state_mask = row_mask[:, None] & (k_offsets < width)[None, :]
            y = tl.dot(tl.load(state_ptrs + k_offsets[None, :], mask=state_mask, other=0.0), read, y)
        else:
            y = tl.zeros((ROWS, CHUNK), dtype=tl.float32)
            for k_start in range(0, CHUNK, BLOCK_K):
                k = k_start + k_offsets
                samples = load_samples(signal_ptr, sample_offsets, k, left, row_mask)
                toeplitz = _load_toeplitz(lags_ptr, k, outputs, flipped).to(dtype)
                y = tl.dot(samples, toeplitz, y, input_precision=PRECISION)
            for k_start in range(0, width, BLOCK_K):
                k = k_start + k_offsets
                states = tl.load(state_ptrs + k[None, :], mask=row_mask[:, None], other=0.0)
                read = _load_read(read_ptr, k, outputs, width).to(dtype)
                y = tl.dot(states, read, y, input_precision=PRECISION)
        y_offsets = batches * n_features * length + chunks * CHUNK
        y_ptrs = y_ptr + (y_offsets[:, None] + outputs[None, :])
        tl.store(y_ptrs, y.to(dtype), mask=(outputs[None, :] < left[:, None]) & row_mask[:, None])


@triton.jit
def _load_toeplitz(lags_ptr, samples, outputs, flipped):
    """Load the lags i - j from the samples j to the outputs i, or j - i."""
    lags = outputs[None, :] - samples[:, None]
    return tl.load(lags_ptr + tl.where(flipped == 1, -lags, lags))


@triton.jit
def _load_read(read_ptr, k, outputs, width):
    """Load the tile (k, outputs) of the transposed ``read``."""
    return tl.load(read_ptr + outputs[None, :] * width + k[:, None], mask=(k < width)[:, None], other=0.0)
