"""Kernels of the chunked convolution, forward and adjoint.

The signal of a feature is cut into chunks of T samples. States are real: state n has its real part in column 2n and its
imaginary part in column 2n + 1 of K columns; the columns of a reverse direction follow those of the forward one. With
U[c] a chunk and Λ = Ā^T, which carries a state over a chunk,

    chunk_states     S[c+1] = Λ S[c] + U[c] write               write (T, K): what each sample adds to the states
    chunk_outputs    Y[c] = U[c] Toeplitz(lags) + S[c] readᵀ    read (T, K): what each state adds to the samples

The reverse direction runs from the last chunk to the first. All this is linear in U, and its adjoint has the same form:
lags flipped, write and read exchanged, every direction turned round and Λ conjugated. So these two kernels are most of
the backward pass as well.

chunk_states multiplies 64 chunks with ``write`` at once and then sums them up in registers: in log₂ 64 rounds, every
chunk adds what the chunk 2^i before it has, times Λ^(2^i). Only states are stored, not the contributions of the chunks.
chunk_outputs gathers the tiles of the Toeplitz matrix from the lags, and writes every output once.

Precision: products of two half-precision tensors are exact, and summed in float32. All others take float32 operands
apart into bfloat16 numbers, which every matrix unit multiplies at full speed and which have the exponents of float32:
into three products (2^-16 off) for half-precision signals, whose outputs are rounded to 2^-11 or 2^-8, and into six
(2^-23 off) for float32 ones. States are float32 throughout.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

from sashimi_kernels.torch_backend.convolution import CHUNK
from sashimi_kernels.triton_backend.arguments import FLOATS, pointers
from sashimi_kernels.triton_backend.launch import Launch, launch

# States are padded to whole blocks of this many columns, which makes their tiles aligned and free of masks.
BLOCK_STATE = 32
_STATES = {"CHUNK": CHUNK, "ROWS": 64, "COLUMNS": BLOCK_STATE, "BLOCK_K": 16}
_OUTPUTS = {"CHUNK": CHUNK, "ROWS": 64, "BLOCK_K": 16}
# For tiles that four warps have no registers for.
LARGE = {"num_warps": 8, "num_stages": 3}
_SIGNAL_STRIDES = ("signal_batch_stride", "signal_feature_stride")


def chunk_states(
    signal: Tensor, write: Tensor, decay: Tensor, start: Tensor, added: Tensor, adjoint: bool
) -> tuple[Tensor, Tensor]:
    """States that enter each chunk, and the forward direction's state that leaves the last one.

    Args:
        signal: (B, H, L), contiguous along L.
        write: float32 (H, T, K).
        decay: float32 (H, K).
        start: state that enters the first chunk, float32 (B, H, K or, where half of the columns are those of a reverse
            direction, K / 2). The reverse direction starts from zero.
        added: added to the state that leaves the first chunk, the same shape.
        adjoint: all directions are turned round, so that the forward one's first chunk is the last of the signal.

    Returns:
        float32 (B, H, chunks, K), and one of the shape of ``start``.
    """
    n_batch, n_features, length = signal.shape
    width, n_chunks = write.shape[-1], triton.cdiv(length, CHUNK)
    states = start.new_empty(n_batch, n_features, n_chunks, width)
    final = start.new_empty(start.shape)
    tensors = pointers(signal=signal, write=write, decay=decay, start=start, added=added, states=states, final=final)
    sizes = {"length": length, "width": width, "forward_width": start.shape[-1], "adjoint": int(adjoint)}
    grid = (width // BLOCK_STATE, n_features, n_batch)
    constants = {**_STATES, "PRECISION": matrix_precision(signal.dtype)}
    launch(chunk_states_kernel, grid, {**tensors, **sizes, **row_strides(signal=signal)}, constants)
    return states, final


def chunk_outputs(signal: Tensor, lags: Tensor, read: Tensor, states: Tensor) -> Tensor:
    """Signal times the Toeplitz matrix of the lags, plus what the states add, (B, H, L) in the signal's dtype.

    Args:
        signal: (B, H, L), contiguous along L.
        lags: float32 (H, 2T-1). read: float32 (H, T, K). states: float32 (B, H, chunks, K).
    """
    n_batch, n_features, length = signal.shape
    y = signal.new_empty(signal.shape)
    n_rows, width = n_batch * states.shape[2], states.shape[3]
    tensors = pointers(signal=signal, lags=lags, read=read, states=states, y=y)
    sizes = {"length": length, "width": width, "n_rows": n_rows, **row_strides(signal=signal)}
    constants = {**_OUTPUTS, "PRECISION": matrix_precision(signal.dtype)}
    grid = (triton.cdiv(n_rows, _OUTPUTS["ROWS"]), n_features)
    launch(chunk_outputs_kernel, grid, {**tensors, **sizes}, constants, **LARGE)
    return y


def launches() -> Iterator[Launch]:
    """Every form in which the kernels of this module are started."""
    f32 = "*fp32"
    for dtype in FLOATS:
        precision = {"PRECISION": matrix_precision(dtype)}
        tensors = pointers(signal=dtype, write=f32, decay=f32, start=f32, added=f32, states=f32, final=f32)
        sizes = ("length", "width", "forward_width", "adjoint", *_SIGNAL_STRIDES)
        yield matrix_form(chunk_states_kernel, tensors, sizes, {**_STATES, **precision})
        tensors = pointers(signal=dtype, lags=f32, read=f32, states=f32, y=dtype)
        sizes = ("length", "width", "n_rows", *_SIGNAL_STRIDES)
        yield matrix_form(chunk_outputs_kernel, tensors, sizes, {**_OUTPUTS, **precision}, **LARGE)


@triton.jit
def chunk_states_kernel(
    signal_ptr,
    write_ptr,
    decay_ptr,
    start_ptr,
    added_ptr,
    states_ptr,
    final_ptr,
    length,
    width,
    forward_width,
    adjoint,
    signal_batch_stride,
    signal_feature_stride,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    pid_column, pid_h, pid_b = tl.program_id(0) * COLUMNS, tl.program_id(1).to(tl.int64), tl.program_id(2).to(tl.int64)
    n_features = tl.num_programs(1)
    n_chunks = tl.cdiv(length, CHUNK)
    width = tl.multiple_of(width, COLUMNS)
    backward = (pid_column < forward_width) == (adjoint != 0)
    step = tl.where(backward, -1, 1)
    row_offsets, k_offsets = tl.arange(0, ROWS), tl.arange(0, BLOCK_K)
    column_offsets = pid_column + tl.arange(0, COLUMNS)
    real_offsets = pid_column + 2 * tl.arange(0, COLUMNS // 2)
    signal_ptr += pid_b * signal_batch_stride + pid_h * signal_feature_stride
    write_ptr += pid_h * CHUNK * width
    states_ptr += (pid_b * n_features + pid_h) * n_chunks * width
    edge = (pid_b * n_features + pid_h) * forward_width
    forward_mask = real_offsets < forward_width
    decay_ptr += pid_h * width
    decay_real, decay_imag = tl.load(decay_ptr + real_offsets), tl.load(decay_ptr + real_offsets + 1)
    last_real = tl.load(start_ptr + edge + real_offsets, mask=forward_mask, other=0.0)
    last_imag = tl.load(start_ptr + edge + real_offsets + 1, mask=forward_mask, other=0.0)
    enter_real, enter_imag = times(decay_real, decay_imag, last_real, last_imag)
    enter_real += tl.load(added_ptr + edge + real_offsets, mask=forward_mask, other=0.0)
    enter_imag += tl.load(added_ptr + edge + real_offsets + 1, mask=forward_mask, other=0.0)
    first_chunk = tl.where(backward, n_chunks - 1, 0)
    first_ptrs = states_ptr + first_chunk * width + real_offsets
    tl.store(first_ptrs, last_real)
    tl.store(first_ptrs + 1, last_imag)
    for row_start in range(0, n_chunks, ROWS):
        rows = row_start + row_offsets
        chunks = first_chunk + step * rows
        # Rows beyond the last chunk get no samples.
        left = tl.where(rows < n_chunks, length - chunks * CHUNK, 0)
        sums = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for k_start in range(0, CHUNK, BLOCK_K):
            positions = k_start + k_offsets
            samples = load_samples(signal_ptr, chunks * CHUNK, positions, left).to(tl.float32)
            write = tl.load(write_ptr + positions[:, None] * width + column_offsets[None, :])
            sums = tl.dot(samples, write, sums, input_precision=PRECISION)
        real, imag = tl.split(tl.reshape(sums, (ROWS, COLUMNS // 2, 2)))
        is_first = row_offsets[:, None] == 0
        real += tl.where(is_first, enter_real[None, :], 0.0)
        imag += tl.where(is_first, enter_imag[None, :], 0.0)
        real, imag = _scan(real, imag, decay_real, decay_imag, ROWS, COLUMNS // 2)
        next_chunks = chunks + step
        state_ptrs = states_ptr + next_chunks[:, None] * width + column_offsets[None, :]
        tl.store(state_ptrs, tl.reshape(tl.join(real, imag), (ROWS, COLUMNS)), mask=(rows + 1 < n_chunks)[:, None])
        is_last = rows[:, None] == tl.minimum(row_start + ROWS, n_chunks) - 1
        last_real, last_imag = tl.sum(tl.where(is_last, real, 0.0), 0), tl.sum(tl.where(is_last, imag, 0.0), 0)
        enter_real, enter_imag = times(decay_real, decay_imag, last_real, last_imag)
    tl.store(final_ptr + edge + real_offsets, last_real, mask=forward_mask)
    tl.store(final_ptr + edge + real_offsets + 1, last_imag, mask=forward_mask)


@triton.jit
def chunk_outputs_kernel(
    signal_ptr,
    lags_ptr,
    read_ptr,
    states_ptr,
    y_ptr,
    length,
    width,
    n_rows,
    signal_batch_stride,
    signal_feature_stride,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    pid_row, pid_h = tl.program_id(0), tl.program_id(1).to(tl.int64)
    n_features = tl.num_programs(1)
    n_chunks = tl.cdiv(length, CHUNK)
    width = tl.multiple_of(width, BLOCK_K)
    rows = pid_row * ROWS + tl.arange(0, ROWS)
    row_mask = rows < n_rows
    batches, chunks = (rows // n_chunks).to(tl.int64), rows % n_chunks
    left = tl.where(row_mask, length - chunks * CHUNK, 0)
    out_offsets, k_offsets = tl.arange(0, CHUNK), tl.arange(0, BLOCK_K)
    sample_offsets = batches * signal_batch_stride + pid_h * signal_feature_stride + chunks * CHUNK
    y = tl.zeros((ROWS, CHUNK), dtype=tl.float32)
    lags_ptr += pid_h * (2 * CHUNK - 1) + CHUNK - 1
    for k_start in range(0, CHUNK, BLOCK_K):
        positions = k_start + k_offsets
        samples = load_samples(signal_ptr, sample_offsets, positions, left)
        toeplitz = tl.load(lags_ptr + out_offsets[None, :] - positions[:, None])
        y = tl.dot(samples, toeplitz.to(samples.dtype), y, input_precision=PRECISION)
    state_ptrs = states_ptr + ((batches * n_features + pid_h) * n_chunks + chunks)[:, None] * width
    read_ptr += pid_h * CHUNK * width
    for k_start in range(0, width, BLOCK_K):
        columns = k_start + k_offsets
        states = tl.load(state_ptrs + columns[None, :], mask=row_mask[:, None], other=0.0)
        read = tl.load(read_ptr + out_offsets[None, :] * width + columns[:, None])
        y = tl.dot(states, read, y, input_precision=PRECISION)
    y_offsets = (batches * n_features + pid_h) * length + chunks * CHUNK
    y_ptrs = y_ptr + y_offsets[:, None] + out_offsets[None, :]
    tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=out_offsets[None, :] < left[:, None])


@triton.jit
def load_samples(signal_ptr, row_offsets, position_offsets, left):
    """Tile (rows, positions) of rows that start at ``row_offsets`` and have ``left`` elements; zeros behind them."""
    mask = position_offsets[None, :] < left[:, None]
    return tl.load(signal_ptr + (row_offsets[:, None] + position_offsets[None, :]), mask=mask, other=0.0)


@triton.jit
def _scan(real, imag, decay_real, decay_imag, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Row r becomes Σ over the rows s ≤ r of decay^(r-s) · row s, by doubling."""
    row_offsets = tl.arange(0, ROWS)[:, None]
    distance = 1
    while distance < ROWS:
        source = tl.broadcast_to(tl.maximum(row_offsets - distance, 0), (ROWS, COLUMNS))
        exists = row_offsets >= distance
        earlier_real = tl.where(exists, tl.gather(real, source, 0), 0.0)
        earlier_imag = tl.where(exists, tl.gather(imag, source, 0), 0.0)
        carried_real, carried_imag = times(decay_real[None, :], decay_imag[None, :], earlier_real, earlier_imag)
        real += carried_real
        imag += carried_imag
        decay_real, decay_imag = times(decay_real, decay_imag, decay_real, decay_imag)
        distance *= 2
    return real, imag


@triton.jit
def times(a_real, a_imag, b_real, b_imag):
    """Real and imaginary part of a · b."""
    return a_real * b_real - a_imag * b_imag, a_real * b_imag + a_imag * b_real


def matrix_precision(dtype: torch.dtype | str) -> str:
    """The ``input_precision`` of products of float32 numbers for signals of this type, a Triton or PyTorch one."""
    if knobs.runtime.interpret:
        return "ieee"  # the interpreter has one precision, which is that of float32
    return "bf16x6" if dtype in (torch.float32, "*fp32") else "bf16x3"


def row_strides(**tensors: Tensor) -> dict[str, int]:
    """The arguments ``{name}_batch_stride`` and ``{name}_feature_stride`` of tensors (B, H, ...)."""
    return {
        f"{name}_{axis}_stride": tensor.stride(dimension)
        for name, tensor in tensors.items()
        for dimension, axis in enumerate(("batch", "feature"))
    }


def matrix_form(
    kernel: Any,
    tensors: dict[str, str],
    sizes: tuple[str, ...],
    constants: dict[str, Any],
    num_warps: int = 4,
    num_stages: int = 2,
) -> Launch:
    """One form of a kernel with matrix products, from the types of its pointers and the names of its integers."""
    signature = {**tensors, **dict.fromkeys(sizes, "i32")}
    return Launch(kernel, signature, constants, num_warps, num_stages, matrix=True)
