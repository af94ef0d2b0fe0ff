"""Gradients of the weight and the bias of a linear map of the channels, y = W f(x) + b.

    dW = Σ dy f(x)ᵀ    db = Σ dy        sums over all positions of all batch elements

Each program computes a block of dW from a share of the positions, and PyTorch adds the shares in a fixed order. There
are no atomic operations, so results do not change from run to run. f is computed when x is loaded.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sashimi_kernels.triton_backend.arguments import matrix_precision, multiple, pointers
from sashimi_kernels.triton_backend.launch import Launch, launch
from sashimi_kernels.triton_backend.pointwise_tiles import (
    ALIGNED,
    TARGETS,
    dtypes,
    gelu,
    gpu_of,
    is_single,
    length_argument,
    normalize,
)

# Enough programs for the largest GPUs. The number is fixed, so that all GPUs add the same shares.
_PROGRAMS = 256
_HALF = {"ROWS": 128, "COLUMNS": 64, "POSITIONS": 64}
_SINGLE = {"ROWS": 64, "COLUMNS": 64, "POSITIONS": 32}
_SMALL = {"ROWS": 32, "COLUMNS": 32, "POSITIONS": 32}
# Other GPUs have the tiles of half precision.
_TILES = {"rdna": _SMALL, "single": _SINGLE, "small single": _SMALL}
_OPTIONS = {"num_warps": 4, "num_stages": 3}


class Norm:
    """The norm of the input: f(x) = norm(x).

    Args:
        moments: mean and 1 / √(variance + epsilon) of every position, float32 (B, 2, L).
        weight, offset: parameters of the norm, (1,) or (H,).
        layer: whether it is the layer norm, not the scalar norm.
    """

    def __init__(self, moments: Tensor, weight: Tensor, offset: Tensor, layer: bool) -> None:
        self.pointers = pointers(moments=moments, norm_weight=weight, norm_offset=offset)
        self.layer = layer


_NO_NORM = pointers(moments=None, norm_weight=None, norm_offset=None)


def n_shares(x: Tensor, n_outputs: int, n_inputs: int) -> int:
    """Return into how many shares the positions of ``x``, (B, channels, L), are divided."""
    tile = _tile(gpu_of(x))
    n_blocks = triton.cdiv(n_outputs, tile["ROWS"]) * triton.cdiv(n_inputs, tile["COLUMNS"])
    n_tiles = _n_tiles(x, tile)
    return triton.cdiv(n_tiles, triton.cdiv(n_tiles, max(1, _PROGRAMS // n_blocks))) if n_tiles else 0


def share_sums(sums: Tensor, dy: Tensor, x: Tensor, gelu: bool = False, norm: Norm | None = None) -> None:
    """Write the sums of each share of the positions.

    Args:
        sums: float32 (shares, O · K + O), rows may be parts of longer rows: dW and then db of each share.
        dy: gradient of the output, aligned (B, O, L).
        x: input, aligned (B, K, L).
        gelu: f is the exact GELU.
        norm: f is this norm. Without both, f is the identity.
    """
    tile = _tile(gpu_of(x))
    batch, n_outputs, _ = dy.shape
    n_inputs, n_rows = x.shape[1], sums.shape[0]
    tensors = {**pointers(dy=dy, x=x, sums=sums), **(_NO_NORM if norm is None else norm.pointers)}
    sizes = {"n_outputs": n_outputs, "n_inputs": n_inputs, "batch": batch, "row_stride": sums.stride(0)}
    arguments = {**tensors, **sizes, **length_argument(x, max(n_outputs, n_inputs))}
    arguments["tiles_per_share"] = triton.cdiv(_n_tiles(x, tile), n_rows) if n_rows else 0
    arguments["layer"] = int(norm is not None and norm.layer)
    on_load = "gelu" if gelu else "identity" if norm is None else "norm"
    constants = _constants(gpu_of(x), x.dtype, on_load)
    grid = (triton.cdiv(n_inputs, tile["COLUMNS"]), triton.cdiv(n_outputs, tile["ROWS"]), n_rows)
    launch(weight_gradient_kernel, grid, arguments, constants, **_OPTIONS)


def launches() -> Iterator[Launch]:
    """Yield every form in which the kernels of this module are launched."""
    names = ("n_outputs", "n_inputs", "batch", "row_stride", "length", "tiles_per_share", "layer")
    for x, parameter in dtypes():
        for on_load in ("gelu", "identity", "norm"):
            if on_load != "norm" and parameter != "*fp32":
                continue  # these forms have no parameters
            norm = pointers(moments="*fp32", norm_weight=parameter, norm_offset=parameter)
            absent = {} if on_load == "norm" else _NO_NORM
            types = {**pointers(dy=x, x=x, sums="*fp32"), **({} if absent else norm), **dict.fromkeys(names, "i32")}
            for gpu in (gpu for gpu in TARGETS if is_single(gpu) == is_single(x)):
                constants = {**_constants(gpu, x, on_load), **absent}
                yield Launch(weight_gradient_kernel, types, constants, **_OPTIONS, matrix=True, targets=TARGETS[gpu])


def _tile(gpu: str) -> dict[str, int]:
    return _TILES.get(gpu, _HALF)


def _n_tiles(x: Tensor, tile: dict[str, int]) -> int:
    return x.shape[0] * triton.cdiv(x.shape[2], tile["POSITIONS"])


def _constants(gpu: str, dtype: torch.dtype | str, on_load: str) -> dict[str, Any]:
    return {**_tile(gpu), **ALIGNED, "ON_LOAD": on_load, "PRECISION": matrix_precision(dtype)}


@triton.jit
def weight_gradient_kernel(
    dy_ptr,
    x_ptr,
    sums_ptr,
    moments_ptr,
    norm_weight_ptr,
    norm_offset_ptr,
    n_outputs,
    n_inputs,
    batch,
    row_stride,
    length,
    tiles_per_share,
    layer,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    POSITIONS: tl.constexpr,
    ON_LOAD: tl.constexpr,
    ALIGNED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    length = multiple(length, ALIGNED)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row_mask, column_mask = rows < n_outputs, columns < n_inputs
    pid_share = tl.program_id(2)
    n_tiles = tl.cdiv(length, POSITIONS)
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    row_sums = tl.zeros((ROWS,), tl.float32)
    first = pid_share * tiles_per_share
    for tile in range(first, tl.minimum(first + tiles_per_share, n_tiles * batch)):
        pid_batch = (tile // n_tiles).to(tl.int64)
        positions = tile % n_tiles * POSITIONS + tl.arange(0, POSITIONS)
        position_mask = positions < length
        dy_ptrs = dy_ptr + pid_batch * n_outputs * length + (rows[:, None] * length + positions[None, :])
        dy = tl.load(dy_ptrs, row_mask[:, None] & position_mask[None, :], other=0.0)
        x_ptrs = x_ptr + pid_batch * n_inputs * length + (columns[:, None] * length + positions[None, :])
        x = tl.load(x_ptrs, column_mask[:, None] & position_mask[None, :], other=0.0)
        if ON_LOAD == "gelu":
            x = gelu(x.to(tl.float32)).to(dy.dtype)
        if ON_LOAD == "norm":
            moment_ptrs = moments_ptr + pid_batch * 2 * length + positions
            mean = tl.load(moment_ptrs, position_mask, other=0.0)
            scale = tl.load(moment_ptrs + length, position_mask, other=0.0)
            x = normalize(x, mean, scale, norm_weight_ptr, norm_offset_ptr, columns, n_inputs, layer)
            x = x.to(dy.dtype)
        sums = tl.dot(dy, tl.trans(x), sums, input_precision=PRECISION)
        row_sums += tl.sum(dy.to(tl.float32), 1)
    sums_ptr += pid_share.to(tl.int64) * row_stride
    mask = row_mask[:, None] & column_mask[None, :]
    tl.store(sums_ptr + rows[:, None] * n_inputs + columns[None, :], sums, mask)
    tl.store(sums_ptr + n_outputs * n_inputs + rows, row_sums, row_mask & (tl.program_id(0) == 0))
