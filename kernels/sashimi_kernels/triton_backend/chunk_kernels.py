"""Kernels of the chunked convolution, forward and adjoint.

The signal of a feature is divided into chunks of T samples. States are stored as K real columns: the real part of state
n is in column 2n, its imaginary part in column 2n + 1. Columns of a reverse direction follow those of the forward
direction. With a chunk U[c] and the factor Λ = Ā^T of a state over a chunk,

    chunk_states     S[c+1] = Λ S[c] + U[c] write               write (T, K): from each sample to the states
    chunk_outputs    Y[c] = U[c] Toeplitz(lags) + S[c] readᵀ    read (T, K): from each state to the samples

The reverse direction runs from the last chunk to the first. Everything is linear in U, and the adjoint has the same
form with flipped lags, write and read exchanged, directions reversed and Λ conjugated. Therefore these two kernels do
most of the backward pass as well.

chunk_states multiplies 64 chunks with ``write`` and scans the results in registers: in round i of log₂ 64 rounds, every
chunk adds Λ^(2^i) times the value of the chunk 2^i before it. Only states are stored, not the contributions of the
chunks. chunk_outputs gathers the tiles of the Toeplitz matrix from the lags and writes every output once.

Precision: products of two half-precision tensors are exact and summed in float32. Other products split float32 operands
into bfloat16 numbers, which have the exponent range of float32 and run at full speed on every matrix unit.
Half-precision signals take three products (relative error 2^-16, below their own rounding of 2^-11 or 2^-8) and float32
signals take six (2^-23). States are always float32.
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

# States are padded to a multiple of this number of columns, so tiles are aligned and need no masks.
BLOCK_STATE = 32
_STATES = {"CHUNK": CHUNK, "ROWS": 64, "COLUMNS": BLOCK_STATE, "BLOCK_K": 16}
_OUTPUTS = {"CHUNK": CHUNK, "ROWS": 64, "BLOCK_K": 16}
# For tiles that do not fit the registers of four warps.
LARGE = {"num_warps": 8, "num_stages": 3}
_SIGNAL_STRIDES = ("signal_batch_stride", "signal_feature_stride")


def chunk_states(
    signal: Tensor, write: Tensor, decay: Tensor, start: Tensor, added: Tensor, adjoint: bool
) -> tuple[Tensor, Tensor]:
    """Return the states before each chunk, and the forward direction's state after the last chunk.

    Args:
        signal: (B, H, L), contiguous along L.
        write: contribution of each sample to the states, float32 (H, T, K).
        decay: factor Λ of a state over a chunk, float32 (H, K).
        start: state before the first chunk, float32 (B, H, K), or (B, H, K / 2) if half of the columns belong to a
            reverse direction. The reverse direction starts from zero.
        added: added to the state after the first chunk, in the shape of ``start``.
        adjoint: reverse both directions: the first chunk of the forward direction is then the last of the signal.

    Returns:
        float32 (B, H, chunks, K), and a tensor in the shape of ``start``.
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
    """Return the signal times the Toeplitz matrix of the lags plus the contributions of the states.

    Args:
        signal: (B, H, L), contiguous along L.
        lags: float32 (H, 2T-1).
        read: float32 (H, T, K).
        states: float32 (B, H, chunks, K).

    Returns:
        (B, H, L) in the dtype of ``signal``.
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
    """Yield every form in which the kernels of this module are launched."""
    f32 = "*fp32"
    for dtype in FLOATS:
        precision = {"PRECISION": matrix_precision(dtype)}
        tensors = pointers(signal=dtype, write=f32, decay=f32, start=f32, added=f32, states=f32, final=f32)
        integers: tuple[str, ...] = ("length", "width", "forward_width", "adjoint", *_SIGNAL_STRIDES)
        yield matrix_form(chunk_states_kernel, tensors, integers, {**_STATES, **precision})
        tensors = pointers(signal=dtype, lags=f32, read=f32, states=f32, y=dtype)
        integers = ("length", "width", "n_rows", *_SIGNAL_STRIDES)
        yield matrix_form(chunk_outputs_kernel, tensors, integers, {**_OUTPUTS, **precision}, **LARGE)


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
    direction = tl.where(backward, -1, 1)
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
        chunks = first_chunk + direction * rows
        # Rows after the last chunk have no samples.
        remaining = tl.where(rows < n_chunks, length - chunks * CHUNK, 0)
        sums = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for k_start in range(0, CHUNK, BLOCK_K):
            positions = k_start + k_offsets
            samples = load_samples(signal_ptr, chunks * CHUNK, positions, remaining).to(tl.float32)
            write = tl.load(write_ptr + positions[:, None] * width + column_offsets[None, :])
            sums = tl.dot(samples, write, sums, input_precision=PRECISION)
        real, imag = tl.split(tl.reshape(sums, (ROWS, COLUMNS // 2, 2)))
        is_first = row_offsets[:, None] == 0
        real += tl.where(is_first, enter_real[None, :], 0.0)
        imag += tl.where(is_first, enter_imag[None, :], 0.0)
        real, imag = _scan(real, imag, decay_real, decay_imag, ROWS, COLUMNS // 2)
        next_chunks = chunks + direction
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
    remaining = tl.where(row_mask, length - chunks * CHUNK, 0)
    out_offsets, k_offsets = tl.arange(0, CHUNK), tl.arange(0, BLOCK_K)
    sample_offsets = batches * signal_batch_stride + pid_h * signal_feature_stride + chunks * CHUNK
    y = tl.zeros((ROWS, CHUNK), dtype=tl.float32)
    lags_ptr += pid_h * (2 * CHUNK - 1) + CHUNK - 1
    for k_start in range(0, CHUNK, BLOCK_K):
        positions = k_start + k_offsets
        samples = load_samples(signal_ptr, sample_offsets, positions, remaining)
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
    tl.store(y_ptrs, y.to(y_ptr.dtype.element_ty), mask=out_offsets[None, :] < remaining[:, None])


@triton.jit
def load_samples(signal_ptr, row_offsets, position_offsets, remaining):
    """Load a zero-padded tile (rows, positions). Rows start at ``row_offsets`` and have ``remaining`` elements."""
    mask = position_offsets[None, :] < remaining[:, None]
    return tl.load(signal_ptr + (row_offsets[:, None] + position_offsets[None, :]), mask=mask, other=0.0)


@triton.jit
def _scan(real, imag, decay_real, decay_imag, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return rows in which row r is the sum of decay^(r-s) · row s over the rows s ≤ r, computed by doubling."""
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
    """Return the real and imaginary part of a · b."""
    return a_real * b_real - a_imag * b_imag, a_real * b_imag + a_imag * b_real


def matrix_precision(dtype: torch.dtype | str) -> str:
    """Return the ``input_precision`` of float32 products for signals of this Triton or PyTorch type."""
    if knobs.runtime.interpret:
        return "ieee"  # the only precision of the interpreter, that of float32
    return "bf16x6" if dtype in (torch.float32, "*fp32") else "bf16x3"


def row_strides(**tensors: Tensor) -> dict[str, int]:
    """Return the arguments ``{name}_batch_stride`` and ``{name}_feature_stride`` of tensors (B, H, ...)."""
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
    """Return one form of a kernel with matrix products from its pointer types and the names of its integers."""
    signature = {**tensors, **dict.fromkeys(sizes, "i32")}
    return Launch(kernel, signature, constants, num_warps, num_stages, matrix=True)
