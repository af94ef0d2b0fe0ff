"""Outputs of the chunks of a signal from its samples and states: one product with two pairs of operands.

    Y[c] = U[c] · Toeplitz(lags) + S[c] · readᵀ

The tile of the Toeplitz matrix is gathered from the lags and, like the tile of ``read``, once per program: a program
computes several blocks of rows (chunks of any batch element) of one feature. In float32 the split operands do not fit
on the chip, so blocks of them are loaded for each block of rows. The gradient of the signal has the same form with
flipped lags, write instead of read and the adjoint states.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sashimi_kernels.chunks import CHUNK
from sashimi_kernels.triton_backend.arguments import FLOATS, pointers
from sashimi_kernels.triton_backend.chunk_tiles import in_units, load_samples, matrix_form, matrix_precision, unit_of
from sashimi_kernels.triton_backend.launch import Launch, launch

_WIDTH = 128
# Programs of a launch, if there are so many blocks of rows: two on each multiprocessor of an H100.
_PROGRAMS = 264


def chunk_outputs(signal: Tensor, lags: Tensor, read: Tensor, states: Tensor, n: int, flipped: bool = False) -> Tensor:
    """Return the signal times the Toeplitz matrix of the lags plus the contributions of the states.

    Args:
        signal: (B, H, L), contiguous along L.
        lags: float32 (H, 2T-1).
        read: float32 (H, T, D·n).
        states: result of :func:`chunk_states`, (B, H, chunks, D · columns).
        n: real states per direction.
        flipped: use the lags in the opposite order.

    Returns:
        (B, H, L) in the dtype of ``signal``.
    """
    n_batch, n_features, _ = signal.shape
    y = signal.new_empty(signal.shape)
    n_rows, width = n_batch * states.shape[2], states.shape[3]
    unit = unit_of(signal)
    constants, options = _constants(signal.dtype, width, unit)
    n_blocks = triton.cdiv(n_rows, constants["ROWS"])
    per_program = max(1, min(8, n_blocks * n_features // _PROGRAMS)) if constants["WHOLE"] else 1
    tensors = pointers(signal=signal, lags=lags, read=read, states=states, y=y)
    sizes = {"n": n, "columns": width * n // read.shape[-1], "width": width, "n_rows": n_rows, "flipped": int(flipped)}
    arguments = {**tensors, **sizes, "per_program": per_program, **in_units(unit, signal=signal)}
    launch(chunk_outputs_kernel, (triton.cdiv(n_blocks, per_program), n_features), arguments, constants, **options)
    return y


def _constants(dtype: torch.dtype | str, width: int, unit: int) -> tuple[dict[str, Any], dict[str, int]]:
    """Return constants and launch options."""
    single = dtype in (torch.float32, "*fp32")
    whole = not single and width <= _WIDTH
    constants = {
        "CHUNK": CHUNK,
        "ROWS": 64 if single else 128,
        "BLOCK_K": _WIDTH if whole else 32,
        "WHOLE": whole,
        "UNIT": unit,
        "PRECISION": matrix_precision(dtype),
    }
    return constants, {"num_warps": 4 if single else 8, "num_stages": 2}


def launches() -> Iterator[Launch]:
    """Yield every form in which the kernel of this module is launched."""
    integers = ("n", "columns", "width", "n_rows", "flipped", "per_program")
    integers += ("length", "signal_batch_stride", "signal_feature_stride")
    for dtype in FLOATS:
        tensors = pointers(signal=dtype, lags="*fp32", read="*fp32", states=dtype, y=dtype)
        for width in (_WIDTH,) if dtype == "*fp32" else (_WIDTH, 2 * _WIDTH):
            for unit in (8, 1):
                constants, options = _constants(dtype, width, unit)
                yield matrix_form(chunk_outputs_kernel, tensors, integers, constants, **options)


@triton.jit
def chunk_outputs_kernel(
    signal_ptr,
    lags_ptr,
    read_ptr,
    states_ptr,
    y_ptr,
    n,
    columns,
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
    UNIT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    pid_h = tl.program_id(1).to(tl.int64)
    n_features = tl.num_programs(1)
    width = tl.multiple_of(width, 64)
    length *= UNIT
    n_chunks = tl.cdiv(length, CHUNK)
    dtype = signal_ptr.dtype.element_ty
    outputs, k_offsets = tl.arange(0, CHUNK), tl.arange(0, BLOCK_K)
    lags_ptr += pid_h * (2 * CHUNK - 1) + CHUNK - 1
    read_ptr += pid_h * CHUNK * (width // columns * n)
    if WHOLE:
        toeplitz = _load_toeplitz(lags_ptr, k_offsets, outputs, flipped).to(dtype)
        read = _load_read(read_ptr, k_offsets, outputs, n, columns, width).to(dtype)
    for index in range(per_program):
        rows = (tl.program_id(0) * per_program + index) * ROWS + tl.arange(0, ROWS)
        row_mask = rows < n_rows
        batches, chunks = (rows // n_chunks).to(tl.int64), rows % n_chunks
        left = length - chunks * CHUNK
        sample_offsets = batches * signal_batch_stride * UNIT + pid_h * signal_feature_stride * UNIT + chunks * CHUNK
        features = batches * n_features + pid_h
        state_ptrs = states_ptr + (features * n_chunks + chunks)[:, None] * width
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
                read = _load_read(read_ptr, k, outputs, n, columns, width).to(dtype)
                y = tl.dot(states, read, y, input_precision=PRECISION)
        y_offsets = features * length + chunks * CHUNK
        y_ptrs = y_ptr + (y_offsets[:, None] + outputs[None, :])
        tl.store(y_ptrs, y.to(dtype), mask=(outputs[None, :] < left[:, None]) & row_mask[:, None])


@triton.jit
def _load_toeplitz(lags_ptr, samples, outputs, flipped):
    """Load the lags i - j from the samples j to the outputs i, or j - i."""
    lags = outputs[None, :] - samples[:, None]
    return tl.load(lags_ptr + tl.where(flipped == 1, -lags, lags))


@triton.jit
def _load_read(read_ptr, k, outputs, n, columns, width):
    """Load the tile (k, outputs) of the transposed ``read``. Column k of the padded states belongs to its column."""
    pitch = width // columns * n
    column = k // columns * n + k % columns
    mask = (k % columns < n) & (k < width)
    return tl.load(read_ptr + outputs[None, :] * pitch + column[:, None], mask=mask[:, None], other=0.0)
