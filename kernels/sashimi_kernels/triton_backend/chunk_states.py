"""States before the chunks of a signal, in one kernel.

With the chunks U[c] of T samples and the operators of :mod:`sashimi_kernels.chunks`,

    S[c+1] = S[c] · advance + U[c] · write

A tile of rows holds groups of consecutive chunks, one group a row, for one direction of one feature. The program

1. goes over the chunks of all groups at once and sums each group from a state of zero,
2. scans the sums over the groups in registers: in round i of log₂ rounds, a group adds advance^(group · 2^i) times the
   value of the group 2^i before it,
3. goes over the chunks again, now from the true state before each group, and stores the states.

Thus few products are sequential, and states are written once and in the dtype of the signal: they are only read as
operands of products that round them to this dtype anyway. The second pass reads samples that are still in the L2 cache.

The reverse direction goes over the chunks from the last to the first. The adjoint exchanges read for write, transposes
``advance`` and reverses both directions. The number of chunks of a group, a power of two, minimizes the sequential
products. PyTorch computes the same states by batched products where the tiles do not fit the registers: with more than
32 complex states, on AMD, and in float32 on GPUs before the H100 or with a state at the ends.
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sashimi_kernels.chunks import CHUNK
from sashimi_kernels.torch_backend.convolution import states_of_chunks
from sashimi_kernels.triton_backend.arguments import FLOATS, is_single, matrix_precision, multiple, pointers
from sashimi_kernels.triton_backend.chunk_tiles import (
    COLUMNS,
    MULTIPLE,
    architecture,
    load_samples,
    matrix_form,
    signal_sizes,
)
from sashimi_kernels.triton_backend.launch import Launch, launch

# Rows of a tile that fits the registers, in half precision and in float32. With a state at the ends, float32 has none.
_ROWS = {"hopper": (64, 64), "ampere": (16, None)}
# Programs that run at the same time: two on each multiprocessor of an H100.
_CONCURRENT = 264


class Grouping(NamedTuple):
    """Arrangement of the chunks in tiles of rows: ``groups`` rows per batch element, 2^``squarings`` chunks per row."""

    group: int
    squarings: int
    groups: int
    rounds: int
    tiles: int

    def sequential_products(self, programs_per_tile: int) -> int:
        """Return the number of products that follow each other on a multiprocessor."""
        waves = triton.cdiv(self.tiles * programs_per_tile, _CONCURRENT)
        return waves * (4 * self.group + self.squarings + 2 * self.rounds)


def grouping(n_batch: int, n_chunks: int, programs_per_tile: int, rows: int) -> Grouping:
    """Return the arrangement with the fewest sequential products."""
    found = []
    for squarings in range(max(1, n_chunks - 1).bit_length() + 1):
        group = 2**squarings
        groups = triton.cdiv(n_chunks, group)
        if groups <= rows:
            rounds, tiles = (groups - 1).bit_length(), triton.cdiv(n_batch, rows // groups)
            found.append(Grouping(group, squarings, groups, rounds, tiles))
    return min(found, key=lambda one: one.sequential_products(programs_per_tile))


def chunk_states(signal: Tensor, write: Tensor, advance: Tensor, adjoint: bool = False) -> Tensor:
    """Return the states before each chunk.

    Args:
        signal: (B, H, L), contiguous along L.
        write: contribution of each sample to the states, float32 (H, T, D·n), with n a multiple of 64.
        advance: factor of a row of states over a chunk, float32 (H, n, n).
        adjoint: transpose ``advance`` and reverse the directions.

    Returns:
        (B, H, chunks, D·n) in the dtype of ``signal``.
    """
    return _run(signal, write, advance, adjoint, None)[0]


def chunk_states_and_edge(
    signal: Tensor, write: Tensor, advance: Tensor, adjoint: bool, enter: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the result of :func:`chunk_states` for one direction with a state at one end, and that at the other end.

    Args:
        signal, write, advance, adjoint: see :func:`chunk_states`.
        enter: state before the first chunk. In the adjoint: added to the state after the first of the reversed chunks.
            float32 (B, H, n).

    Returns:
        the states, and the state before the last chunk, in the adjoint after the last of the reversed chunks: float32
        (B, H, n).
    """
    states, final = _run(signal, write, advance, adjoint, enter)
    assert final is not None
    return states, final


def _run(
    signal: Tensor, write: Tensor, advance: Tensor, adjoint: bool, enter: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    n, rows = advance.shape[-1], _rows(signal.dtype, architecture(signal.device), enter is not None)
    if rows is None or n > COLUMNS:
        return _by_torch(signal, write, advance, adjoint, enter)
    n_batch, n_features, length = signal.shape
    n_chunks, n_directions = triton.cdiv(length, CHUNK), write.shape[-1] // n
    states = signal.new_empty(n_batch, n_features, n_chunks, write.shape[-1])
    final = None if enter is None else enter.new_empty(enter.shape)
    # In the adjoint, the state at the far end is that before one more chunk.
    n_orders = n_chunks + int(adjoint and enter is not None)
    arrangement = grouping(n_batch, n_orders, n_directions * n_features, rows)
    tensors = pointers(signal=signal, write=write, advance=advance, states=states, enter=enter, final=final)
    sizes = {"n_batch": n_batch, "n_orders": n_orders, "adjoint": int(adjoint), **signal_sizes(signal=signal)}
    sizes |= {name: getattr(arrangement, name) for name in ("group", "squarings", "groups", "rounds")}
    constants, options = _constants(signal.dtype, rows, enter is not None)
    grid = (n_directions, arrangement.tiles, n_features)
    launch(chunk_states_kernel, grid, {**tensors, **sizes}, constants, **options)
    return states, final


def _by_torch(
    signal: Tensor, write: Tensor, advance: Tensor, adjoint: bool, enter: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Do the same by batched products in float32, where the matrices do not fit the registers of the GPU."""
    states, final = states_of_chunks(signal.float(), write, advance.mT if adjoint else advance, enter, adjoint)
    states = states.transpose(0, 1).to(signal.dtype).contiguous()
    # The state before the first chunk is an input, which the result of a custom operation may not alias.
    return states, None if enter is None else final.transpose(0, 1).clone(memory_format=torch.contiguous_format)


def _rows(dtype: torch.dtype | str, name: str, edges: bool) -> int | None:
    """Return the rows of a tile on this architecture, or None if no tile fits."""
    half, single = _ROWS.get(name, (None, None))
    return half if not is_single(dtype) else None if edges else single


def _constants(dtype: torch.dtype | str, rows: int, edges: bool) -> tuple[dict[str, Any], dict[str, int]]:
    """Return constants and launch options."""
    tile = {"CHUNK": CHUNK, "ROWS": rows, "COLUMNS": COLUMNS, "BLOCK_K": 32 if is_single(dtype) else CHUNK}
    small = rows == 64 and not edges and not is_single(dtype)
    options = {"num_warps": 4 if small else 8, "num_stages": 1 if edges or rows < 64 else 2}
    return {**tile, "MULTIPLE": MULTIPLE, "PRECISION": matrix_precision(dtype)}, options


def launches() -> Iterator[Launch]:
    """Yield every form in which the kernel of this module is launched."""
    strides = ("signal_batch_stride", "signal_feature_stride")
    integers = ("n_batch", "n_orders", "adjoint", "length", *strides, "group", "squarings", "groups", "rounds")
    for dtype, name, edge in itertools.product(FLOATS, _ROWS, (None, "*fp32")):
        rows = _rows(dtype, name, edge is not None)
        if rows is not None:
            tensors = pointers(signal=dtype, write="*fp32", advance="*fp32", states=dtype, enter=edge, final=edge)
            constants, options = _constants(dtype, rows, edge is not None)
            yield matrix_form(chunk_states_kernel, tensors, integers, constants, options, (name,))


@triton.jit
def chunk_states_kernel(
    signal_ptr,
    write_ptr,
    advance_ptr,
    states_ptr,
    enter_ptr,
    final_ptr,
    n_batch,
    n_orders,
    adjoint,
    length,
    signal_batch_stride,
    signal_feature_stride,
    group,
    squarings,
    groups,
    rounds,
    CHUNK: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    MULTIPLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    direction, pid_h = tl.program_id(0), tl.program_id(2).to(tl.int64)
    n_directions, n_features = tl.num_programs(0), tl.num_programs(2)
    length, signal_batch_stride = multiple(length, MULTIPLE), multiple(signal_batch_stride, MULTIPLE)
    signal_feature_stride = multiple(signal_feature_stride, MULTIPLE)
    n_chunks = tl.cdiv(length, CHUNK)
    down = (direction + adjoint) % 2 == 1  # from the last chunk to the first
    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    per_tile = ROWS // groups
    places = rows % groups
    batches = tl.program_id(1) * per_tile + rows // groups
    row_mask = (rows < per_tile * groups) & (batches < n_batch)
    signal_offsets = batches.to(tl.int64) * signal_batch_stride
    signal_ptr = tl.multiple_of(signal_ptr + pid_h * signal_feature_stride, 2 * MULTIPLE)
    features = batches.to(tl.int64) * n_features + pid_h
    edge_offsets = features[:, None] * COLUMNS + columns[None, :]
    pitch = n_directions * COLUMNS
    write_ptr = tl.multiple_of(write_ptr + pid_h * CHUNK * pitch + direction * COLUMNS, 16)
    states_ptr = tl.multiple_of(states_ptr + direction * COLUMNS, 16)
    write = write_ptr
    if BLOCK_K == CHUNK:
        write = _load_write(write_ptr, tl.arange(0, CHUNK), pitch, columns)
        write = write.to(signal_ptr.dtype.element_ty)
    advance = _load_advance(tl.multiple_of(advance_ptr + pid_h * COLUMNS * COLUMNS, 16), adjoint, COLUMNS)
    state = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for step in range(group):
        order = places * group + step
        if enter_ptr is not None:
            enter_mask = (row_mask & (order == adjoint))[:, None]
            state += tl.load(enter_ptr + edge_offsets, mask=enter_mask, other=0.0)
        chunk = tl.where(down, n_chunks - 1 - order, order)
        state = _advanced(
            state, advance, signal_ptr, signal_offsets + chunk * CHUNK, length - chunk * CHUNK,
            row_mask & (order < n_chunks), write, pitch, columns, CHUNK, BLOCK_K, PRECISION,
        )  # fmt: skip
    # From the sums of the groups to the states before the groups.
    leap = advance
    for _ in range(squarings):
        leap = tl.dot(leap, leap, input_precision=PRECISION)
    state = _rows_before(state, 1, places, ROWS, COLUMNS)
    distance = 1
    for _ in range(rounds):
        state = tl.dot(_rows_before(state, distance, places, ROWS, COLUMNS), leap, state, input_precision=PRECISION)
        leap = tl.dot(leap, leap, input_precision=PRECISION)
        distance *= 2
    for step in range(group):
        order = places * group + step
        if enter_ptr is not None:
            enter_mask = (row_mask & (order == adjoint))[:, None]
            state += tl.load(enter_ptr + edge_offsets, mask=enter_mask, other=0.0)
            at_end = row_mask & (order == n_orders - 1)
            tl.store(final_ptr + edge_offsets, state, mask=at_end[:, None])
        chunk = tl.where(down, n_chunks - 1 - order, order)
        mask = row_mask & (order < n_chunks)
        state_offsets = (features * n_chunks + chunk) * pitch
        state_ptrs = states_ptr + state_offsets[:, None] + columns[None, :]
        tl.store(state_ptrs, state.to(states_ptr.dtype.element_ty), mask=mask[:, None])
        state = _advanced(
            state, advance, signal_ptr, signal_offsets + chunk * CHUNK, length - chunk * CHUNK,
            mask, write, pitch, columns, CHUNK, BLOCK_K, PRECISION,
        )  # fmt: skip


@triton.jit
def _advanced(
    state, advance, signal_ptr, offsets, left, mask, write, pitch, columns,
    CHUNK: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Return state · advance + samples · write. ``write`` is a tile, or with several blocks a pointer."""
    state = tl.dot(state, advance, input_precision=PRECISION)
    if BLOCK_K == CHUNK:
        samples = load_samples(signal_ptr, offsets, tl.arange(0, CHUNK), left, mask)
        state = tl.dot(samples, write, state)
    else:
        for k_start in range(0, CHUNK, BLOCK_K):
            positions = k_start + tl.arange(0, BLOCK_K)
            samples = load_samples(signal_ptr, offsets, positions, left, mask)
            block = _load_write(write, positions, pitch, columns).to(samples.dtype)
            state = tl.dot(samples, block, state, input_precision=PRECISION)
    return state


@triton.jit
def _load_write(write_ptr, positions, pitch, columns):
    return tl.load(write_ptr + positions[:, None] * pitch + columns[None, :])


@triton.jit
def _load_advance(advance_ptr, adjoint, COLUMNS: tl.constexpr):
    """Load the matrix or, in the adjoint, its transpose."""
    rows, columns = tl.arange(0, COLUMNS)[:, None], tl.arange(0, COLUMNS)[None, :]
    advance = tl.load(advance_ptr + rows * COLUMNS + columns)
    return tl.trans(advance) if adjoint else advance


@triton.jit
def _rows_before(x, distance, places, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the tile whose row at place p of a batch element is the row at place p - distance, or zero."""
    source = tl.maximum(tl.arange(0, ROWS) - distance, 0)
    moved = tl.gather(x, tl.broadcast_to(source[:, None], (ROWS, COLUMNS)), 0)
    return tl.where((places >= distance)[:, None], moved, 0.0)
