"""GELU, linear map, gated linear unit and residual in one pass: y = residual + a · sigmoid(b), (a, b) = W GELU(x) + c.

A program has all input channels of a tile of positions. It computes GELU once and goes through blocks of output
channels: rows of W for a and for b together. The input and the residual are read once and the output is written once.

The backward pass recomputes a and s = sigmoid(b) from x, the only signal that is saved (W is saved as rounded in the
forward pass):

    da = dy s    db = dy a s (1 - s)    dx = (Wᵀ (da, db)) GELU'(x)    dW = Σ (da, db) GELU(x)ᵀ    dc = Σ (da, db)

One kernel writes dx and (da, db), a second one sums dW and dc over shares of the positions, and PyTorch adds these.

Inputs with more channels than a tile has take the kernel of :mod:`sashimi_kernels.triton_backend.wide_linear`: once
forward, and in the backward pass once for (da, db) and once for dx.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sashimi_kernels.derivatives import no_second_derivative
from sashimi_kernels.triton_backend.arguments import multiple, pointers
from sashimi_kernels.triton_backend.launch import Launch
from sashimi_kernels.triton_backend.pointwise_tiles import (
    Tile,
    Tiles,
    aligned,
    fits,
    forms,
    gelu,
    gelu_derivative,
    keep_weight,
    kept_weights,
    length_argument,
    load_bias,
    load_weight,
    padded,
    run,
    same_dtype,
    shortened,
    split,
    tile_of,
)
from sashimi_kernels.triton_backend.weight_gradient import n_shares, share_sums
from sashimi_kernels.triton_backend.wide_linear import transposed_linear, wide_linear

# The tiles of "hopper" up to 128 channels are the fastest of those that were measured on an H200 (docs/gpu.md).
_TILES: Tiles = {
    "hopper": {64: Tile(128, 32, 4, 2), 128: Tile(64, 64, 4, 2), 256: Tile(64, 64, 8, 2)},
    "blackwell": {64: Tile(128, 64, 8, 2), 128: Tile(64, 64, 8, 2), 256: Tile(64, 64, 8, 1)},
    "ampere": {64: Tile(64, 64, 8, 2), 128: Tile(128, 64, 8, 1)},
    "cdna": {64: Tile(128, 64, 8, 1), 128: Tile(64, 64, 8, 1)},
    "single": {64: Tile(64, 64, 8, 1)},
}
_BACKWARD_TILES: Tiles = {
    "hopper": {64: Tile(32, 64, 4, 2), 128: Tile(64, 32, 8, 2), 256: Tile(64, 64, 8, 2)},
    "blackwell": {64: Tile(64, 64, 8, 2), 128: Tile(64, 64, 8, 2), 256: Tile(64, 64, 8, 2)},
    "ampere": {64: Tile(64, 64, 8, 1), 128: Tile(32, 64, 8, 1)},
    "cdna": {64: Tile(64, 64, 8, 1), 128: Tile(64, 64, 8, 1)},
    "single": {64: Tile(32, 16, 8, 1)},
}
# Programs that occupy the largest GPUs. With fewer tiles of positions, several programs share the output channels.
_PROGRAMS = 256


def gated_linear(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None) -> Tensor:
    """Return residual + a · sigmoid(b). A residual in another dtype than ``x`` is added by PyTorch."""
    weight, bias = same_dtype(x, weight, bias)
    if residual is not None and residual.dtype != x.dtype:
        return (residual + gated_linear(x, weight, bias, None)).to(residual.dtype)
    residual = None if residual is None else padded(residual)
    y, _ = _gated_linear(padded(x), weight, bias, residual, torch.is_grad_enabled())
    return shortened(y, x)


@torch.library.custom_op("sashimi_kernels::gated_linear", mutates_args=())
def _gated_linear(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor]:
    """Return the output and, if ``keep``, the weight in the dtype of ``x`` if the tiles need it, otherwise nothing."""
    (batch, _, length), n_outputs = x.shape, weight.shape[0] // 2
    kept = _kept(keep, x, weight)
    if not fits(x, n_outputs, _TILES, _BACKWARD_TILES):
        return wide_linear(x, weight, bias, "gated", *([] if residual is None else [residual]), gelu=True), kept
    tile = tile_of(_TILES, x)
    x, y = aligned(x), x.new_empty(batch, n_outputs, length)
    tensors = pointers(x=x, weight=aligned(weight), bias=aligned(bias), y=y, kept=kept if kept.shape[0] else x)
    tensors |= pointers(residual=x if residual is None else aligned(residual))
    flags = {"has_residual": int(residual is not None), "keep": int(kept.shape[0] > 0)}
    n_tiles = triton.cdiv(length, tile.positions)
    n_groups = min(triton.cdiv(n_outputs, tile.rows), max(1, _PROGRAMS // max(1, n_tiles * batch)))
    arguments = {**tensors, **_sizes(x, n_outputs), **flags}
    run(gated_linear_kernel, _TILES, (n_tiles, n_groups, batch), arguments, x)
    return y, kept


@torch.library.custom_op("sashimi_kernels::gated_linear_backward", mutates_args=())
def _gated_linear_backward(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, weights: bool) -> tuple[Tensor, Tensor]:
    """Return the gradient of x and, if ``weights``, those of weight and bias one after the other, otherwise nothing.

    ``weight`` has the dtype of ``x`` if its tiles need it. Its gradient has the dtype of ``bias``.
    """
    x, dy = aligned(x), aligned(dy)
    if fits(x, weight.shape[0] // 2, _TILES, _BACKWARD_TILES):
        dx, dz = _signal_gradients(dy, x, weight, bias)
    else:
        dz = wide_linear(x, weight, bias, "gate_gradient", dy, gelu=True)
        dx = transposed_linear(dz, weight, x)
    if not weights:
        return dx, bias.new_empty(0)
    sums = x.new_empty(n_shares(x, *weight.shape), weight.numel() + bias.numel(), dtype=torch.float32)
    share_sums(sums, dz, x, gelu=True)
    return dx, sums.sum(0).to(bias.dtype)


def _kept(keep: bool, x: Tensor, weight: Tensor) -> Tensor:
    return kept_weights(keep and fits(x, weight.shape[0] // 2, _TILES, _BACKWARD_TILES), x, weight)


def _signal_gradients(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of x and of weight · GELU(x) + bias."""
    (batch, _, length), n_outputs = x.shape, weight.shape[0] // 2
    dx, dz = x.new_empty(x.shape), x.new_empty(batch, 2 * n_outputs, length)
    tensors = pointers(dy=dy, x=x, weight=aligned(weight), bias=aligned(bias), dx=dx, dz=dz)
    grid = (triton.cdiv(length, tile_of(_BACKWARD_TILES, x).positions), batch)
    run(gated_linear_backward_kernel, _BACKWARD_TILES, grid, {**tensors, **_sizes(x, n_outputs)}, x)
    return dx, dz


@_gated_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, keep: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape[0], weight.shape[0] // 2, x.shape[2]), _kept(keep, x, weight)


@_gated_linear_backward.register_fake
def _(dy: Tensor, x: Tensor, weight: Tensor, bias: Tensor, weights: bool) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), bias.new_empty(weight.numel() + bias.numel() if weights else 0)


def _keep_inputs(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, weight, bias, *_ = inputs
    _, kept = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, kept.view_as(weight) if kept.shape[0] else weight, bias)


def _gradients(ctx: Any, dy: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    need_x, need_weight, need_bias, need_residual, _ = ctx.needs_input_grad
    dresidual = dy if need_residual else None
    if not (need_x or need_weight or need_bias):
        return None, None, None, dresidual, None
    x, weight, bias = ctx.saved_tensors
    dx, parameters = _gated_linear_backward(dy, x, weight, bias, need_weight or need_bias)
    dweight, dbias = split(parameters, weight, bias)
    return dx, dweight, dbias, dresidual, None


_gated_linear.register_autograd(_gradients, setup_context=_keep_inputs)
_gated_linear_backward.register_autograd(no_second_derivative("gated_linear"))


def launches() -> Iterator[Launch]:
    """Yield every form in which the kernels of this module are launched."""
    names = ("x residual y kept", "weight bias", "")
    yield from forms(gated_linear_kernel, _TILES, names, "n_inputs n_outputs has_residual keep")
    names = ("dy x dx dz weight", "bias", "")
    yield from forms(gated_linear_backward_kernel, _BACKWARD_TILES, names, "n_inputs n_outputs")


def _sizes(x: Tensor, n_outputs: int) -> dict[str, int]:
    n_inputs = x.shape[1]
    return {"n_inputs": n_inputs, "n_outputs": n_outputs, **length_argument(x, max(n_inputs, 2 * n_outputs))}


@triton.jit
def gated_linear_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    residual_ptr,
    y_ptr,
    kept_ptr,
    n_inputs,
    n_outputs,
    has_residual,
    keep,
    length,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    POSITIONS: tl.constexpr,
    ALIGNED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    length = multiple(length, ALIGNED)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    channels, positions = tl.arange(0, CHANNELS), tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    pid_batch, position_mask = tl.program_id(2).to(tl.int64), positions < length
    x_ptrs = x_ptr + pid_batch * n_inputs * length + (channels[:, None] * length + positions[None, :])
    x = tl.load(x_ptrs, (channels < n_inputs)[:, None] & position_mask[None, :], other=0.0)
    x = gelu(x.to(tl.float32)).to(dtype)
    gate_weight_ptr, gate_bias_ptr = weight_ptr + n_outputs * n_inputs, bias_ptr + n_outputs
    residual_ptr += pid_batch * n_outputs * length
    y_ptr += pid_batch * n_outputs * length
    for start in range(tl.program_id(1) * ROWS, n_outputs, tl.num_programs(1) * ROWS):
        rows = start + tl.arange(0, ROWS)
        offsets = rows[:, None] * length + positions[None, :]
        mask = (rows < n_outputs)[:, None] & position_mask[None, :]
        _, a = _linear(x, weight_ptr, bias_ptr, rows, channels, n_outputs, n_inputs, PRECISION)
        _, b = _linear(x, gate_weight_ptr, gate_bias_ptr, rows, channels, n_outputs, n_inputs, PRECISION)
        y = a * tl.sigmoid(b)
        y += tl.load(residual_ptr + offsets, mask & (has_residual != 0), other=0.0).to(tl.float32)
        tl.store(y_ptr + offsets, y.to(dtype), mask)
    keep_weight(weight_ptr, kept_ptr, keep * 2 * n_outputs * n_inputs)


@triton.jit
def gated_linear_backward_kernel(
    dy_ptr,
    x_ptr,
    weight_ptr,
    bias_ptr,
    dx_ptr,
    dz_ptr,
    n_inputs,
    n_outputs,
    length,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    POSITIONS: tl.constexpr,
    ALIGNED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    length = multiple(length, ALIGNED)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    channels, positions = tl.arange(0, CHANNELS), tl.program_id(0) * POSITIONS + tl.arange(0, POSITIONS)
    pid_batch, position_mask = tl.program_id(1).to(tl.int64), positions < length
    x_ptr += pid_batch * n_inputs * length
    x_offsets = channels[:, None] * length + positions[None, :]
    x_mask = (channels < n_inputs)[:, None] & position_mask[None, :]
    x = tl.load(x_ptr + x_offsets, x_mask, other=0.0)
    x = gelu(x.to(tl.float32)).to(dtype)
    dx = tl.zeros((CHANNELS, POSITIONS), tl.float32)
    dy_ptr += pid_batch * n_outputs * length
    dz_ptr += 2 * pid_batch * n_outputs * length
    gate_weight_ptr, gate_bias_ptr = weight_ptr + n_outputs * n_inputs, bias_ptr + n_outputs
    half = n_outputs * length
    for start in range(0, n_outputs, ROWS):
        rows = start + tl.arange(0, ROWS)
        offsets = rows[:, None] * length + positions[None, :]
        mask = (rows < n_outputs)[:, None] & position_mask[None, :]
        a_weight, a = _linear(x, weight_ptr, bias_ptr, rows, channels, n_outputs, n_inputs, PRECISION)
        b_weight, b = _linear(x, gate_weight_ptr, gate_bias_ptr, rows, channels, n_outputs, n_inputs, PRECISION)
        sigmoid = tl.sigmoid(b)
        da = tl.load(dy_ptr + offsets, mask, other=0.0).to(tl.float32) * sigmoid
        db = da * a * (1 - sigmoid)
        tl.store(dz_ptr + offsets, da.to(dtype), mask)
        tl.store(dz_ptr + half + offsets, db.to(dtype), mask)
        dx = tl.dot(tl.trans(a_weight), da.to(dtype), dx, input_precision=PRECISION)
        dx = tl.dot(tl.trans(b_weight), db.to(dtype), dx, input_precision=PRECISION)
    x = tl.load(x_ptr + x_offsets, x_mask, other=0.0)
    tl.store(
        dx_ptr + pid_batch * n_inputs * length + x_offsets, (dx * gelu_derivative(x.to(tl.float32))).to(dtype), x_mask
    )


@triton.jit
def _linear(x, weight_ptr, bias_ptr, rows, channels, n_outputs, n_inputs, PRECISION: tl.constexpr):
    """Return a block of the weight, and the output channels that it gives."""
    weight = load_weight(weight_ptr, rows, channels, n_outputs, n_inputs, x.dtype)
    return weight, tl.dot(weight, x, input_precision=PRECISION) + load_bias(bias_ptr, rows, n_outputs)
