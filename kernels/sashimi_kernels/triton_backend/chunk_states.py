"""States before the chunks of a signal, in one kernel.

With the chunks U[c] of T samples and the operators of :mod:`sashimi_kernels.chunks`,

    S[c+1] = S[c] · advance + U[c] · write

A tile of 64 rows holds groups of consecutive chunks, one group a row, for one direction of one feature. The program

1. goes over the chunks of all groups at once and sums each group from a state of zero,
2. scans the sums over the groups in registers: in round i of log₂ rounds, a group adds advance^(group · 2^i) times the
   value of the group 2^i before it,
3. goes over the chunks again, now from the true state before each group, and stores the states.

Thus few products are sequential, and states are written once and in the dtype of the signal: they are only read as
operands of products that round them to this dtype anyway. The second pass reads samples that are still in the L2 cache.

The reverse direction goes over the chunks from the last to the first. The adjoint exchanges read for write, transposes
``advance`` and reverses both directions. The number of chunks of a group, a power of two, minimizes the sequential products.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sashimi_kernels.chunks import CHUNK
from sashimi_kernels.triton_backend.arguments import FLOATS, pointers
from sashimi_kernels.triton_backend.chunk_tiles import (
    COLUMNS,
    in_units,
    load_samples,
    matrix_form,
    matrix_precision,
    padded_columns,
    unit_of,
)
from sashimi_kernels.triton_backend.launch import Launch, launch

_ROWS = 64
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


def grouping(n_batch: int, n_chunks: int, programs_per_tile: int) -> Grouping:
    """Return the arrangement with the fewest sequential products."""
    found = []
    for squarings in range(max(1, n_chunks - 1).bit_length() + 1):
        group = 2**squarings
        groups = triton.cdiv(n_chunks, group)
        if groups <= _ROWS:
            rounds, tiles = (groups - 1).bit_length(), triton.cdiv(n_batch, _ROWS // groups)
            found.append(Grouping(group, squarings, groups, rounds, tiles))
    return min(found, key=lambda one: one.sequential_products(programs_per_tile))


def chunk_states(signal: Tensor, write: Tensor, advance: Tensor, adjoint: bool = False) -> Tensor:
    """Return the states before each chunk.

    Args:
        signal: (B, H, L), contiguous along L.
        write: contribution of each sample to the states, float32 (H, T, D·n).
        advance: factor of a row of states over a chunk, float32 (H, n, n).
        adjoint: transpose ``advance`` and reverse the directions.

    Returns:
        (B, H, chunks, D · columns) in the dtype of ``signal``, where n is padded to 64 or 128 columns.
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
    n_batch, n_features, length = signal.shape
    n, n_chunks = advance.shape[-1], triton.cdiv(length, CHUNK)
    n_directions, columns = write.shape[-1] // n, padded_columns(n)
    states = signal.new_empty(n_batch, n_features, n_chunks, n_directions * columns)
    final = None if enter is None else enter.new_empty(enter.shape)
    # The state at the far end is that before one more chunk in the adjoint.
    n_orders = n_chunks + int(adjoint and enter is not None)
    arrangement = grouping(n_batch, n_orders, n_directions * n_features)
    unit = unit_of(signal) if (enter is None and columns == COLUMNS[0]) else 1
    tensors = pointers(signal=signal, write=write, advance=advance, states=states, enter=enter, final=final)
    sizes = {"n": n, "n_batch": n_batch, "n_orders": n_orders, "adjoint": int(adjoint), **in_units(unit, signal=signal)}
    rows = {name: getattr(arrangement, name) for name in ("group", "squarings", "groups", "rounds")}
    constants, options = _constants(signal.dtype, columns, unit)
    grid = (n_directions, arrangement.tiles, n_features)
    launch(chunk_states_kernel, grid, {**tensors, **sizes, **rows}, constants, **options)
    return states, final


def _constants(dtype: torch.dtype | str, columns: int, unit: int) -> tuple[dict[str, int | str], dict[str, int]]:
    """Return constants and launch options."""
    single = dtype in (torch.float32, "*fp32")
    constants = {
        "CHUNK": CHUNK,
        "ROWS": _ROWS,
        "COLUMNS": columns,
        "BLOCK_K": 32 if single else CHUNK,
        "UNIT": unit,
        "PRECISION": matrix_precision(dtype),
    }
    return constants, {"num_warps": 4 if columns == COLUMNS[0] else 8, "num_stages": 2}


def launches() -> Iterator[Launch]:
    """Yield every form in which the kernel of this module is launched."""
    integers = ("n", "n_batch", "n_orders", "adjoint", "length", "signal_batch_stride", "signal_feature_stride")
    integers += ("group", "squarings", "groups", "rounds")
    for dtype in FLOATS:
        for columns, unit, edge in ((64, 8, None), (64, 1, None), (64, 1, "*fp32"), (128, 1, None), (128, 1, "*fp32")):
            constants, options = _constants(dtype, columns, unit)
            tensors = pointers(signal=dtype, write="*fp32", advance="*fp32", states=dtype)
            edges = pointers(enter=edge, final=edge)
            absent = dict.fromkeys(edges) if edge is None else {}
            present = {} if edge is None else edges
            yield matrix_form(chunk_states_kernel, {**tensors, **present}, integers, {**constants, **absent}, **options)


@triton.jit
def chunk_states_kernel(
    signal_ptr,
    write_ptr,
    advance_ptr,
    states_ptr,
    enter_ptr,
    final_ptr,
    n,
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
    UNIT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    direction, pid_h = tl.program_id(0), tl.program_id(2).to(tl.int64)
    n_directions, n_features = tl.num_programs(0), tl.num_programs(2)
    length *= UNIT
    n_chunks = tl.cdiv(length, CHUNK)
    down = (direction + adjoint) % 2 == 1  # from the last chunk to the first
    rows, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    per_tile = ROWS // groups
    places = rows % groups
    batches = tl.program_id(1) * per_tile + rows // groups
    row_mask = (rows < per_tile * groups) & (batches < n_batch)
    signal_offsets = batches.to(tl.int64) * signal_batch_stride * UNIT + pid_h * signal_feature_stride * UNIT
    features = batches.to(tl.int64) * n_features + pid_h
    edge_offsets = features[:, None] * n + columns[None, :]
    edge_mask = columns[None, :] < n
    write_ptr += pid_h * CHUNK * n_directions * n + direction * n
    write = write_ptr
    if BLOCK_K == CHUNK:
        write = _load_write(write_ptr, tl.arange(0, CHUNK), n_directions * n, columns, n)
        write = write.to(signal_ptr.dtype.element_ty)
    advance = _load_advance(advance_ptr + pid_h * n * n, n, adjoint, COLUMNS)
    state = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for step in range(group):
        order = places * group + step
        if enter_ptr is not None:
            enter_mask = (row_mask & (order == adjoint))[:, None] & edge_mask
            state += tl.load(enter_ptr + edge_offsets, mask=enter_mask, other=0.0)
        chunk = tl.where(down, n_chunks - 1 - order, order)
        state = _advanced(
            state, advance, signal_ptr, signal_offsets + chunk * CHUNK, length - chunk * CHUNK,
            row_mask & (order < n_chunks), write, n_directions * n, columns, n, CHUNK, BLOCK_K, PRECISION,
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
            enter_mask = (row_mask & (order == adjoint))[:, None] & edge_mask
            state += tl.load(enter_ptr + edge_offsets, mask=enter_mask, other=0.0)
            at_end = row_mask & (order == n_orders - 1)
            tl.store(final_ptr + edge_offsets, state, mask=at_end[:, None] & edge_mask)
        chunk = tl.where(down, n_chunks - 1 - order, order)
        mask = row_mask & (order < n_chunks)
        state_offsets = (features * n_chunks + chunk) * (n_directions * COLUMNS) + direction * COLUMNS
        state_ptrs = states_ptr + state_offsets[:, None] + columns[None, :]
        tl.store(state_ptrs, state.to(states_ptr.dtype.element_ty), mask=mask[:, None])
        state = _advanced(
            state, advance, signal_ptr, signal_offsets + chunk * CHUNK, length - chunk * CHUNK,
            mask, write, n_directions * n, columns, n, CHUNK, BLOCK_K, PRECISION,
        )  # fmt: skip


@triton.jit
def _advanced(
    state, advance, signal_ptr, offsets, left, mask, write, write_pitch, columns, n,
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
            block = _load_write(write, positions, write_pitch, columns, n)
            state = tl.dot(samples, block, state, input_precision=PRECISION)
    return state


@triton.jit
def _load_write(write_ptr, positions, pitch, columns, n):
    offsets = positions[:, None] * pitch + columns[None, :]
    return tl.load(write_ptr + offsets, mask=(columns < n)[None, :], other=0.0)


@triton.jit
def _load_advance(advance_ptr, n, adjoint, COLUMNS: tl.constexpr):
    """Load the matrix or, in the adjoint, its transpose."""
    k, columns = tl.arange(0, COLUMNS)[:, None], tl.arange(0, COLUMNS)[None, :]
    offsets = tl.where(adjoint == 1, columns * n + k, k * n + columns)
    return tl.load(advance_ptr + offsets, mask=(k < n) & (columns < n), other=0.0)


@triton.jit
def _rows_before(x, distance, places, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Return the tile whose row at place p of a batch element is the row at place p - distance, or zero."""
    source = tl.maximum(tl.arange(0, ROWS) - distance, 0)
    moved = tl.gather(x, tl.broadcast_to(source[:, None], (ROWS, COLUMNS)), 0)
    return tl.where((places >= distance)[:, None], moved, 0.0)
