"""Gated residual in one pass over memory: y = residual + a · sigmoid(b) for the two halves a, b of the channels of x.

The backward pass recomputes s = sigmoid(b) from x, the only tensor that is saved:

    da = dy · s        db = dy · a · s (1 - s)        dresidual = dy

Each program handles a tile of channels and positions of one batch element.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sashimi_kernels.derivatives import no_second_derivative
from sashimi_kernels.triton_backend.arguments import (
    FLOATS,
    MULTIPLES,
    common_multiple,
    form,
    multiple,
    pointers,
    stride_types,
    strides,
)
from sashimi_kernels.triton_backend.launch import Launch, launch

_BLOCKS = {"BLOCK_H": 16, "BLOCK_L": 128}
_N_WARPS = 4


def gated_residual(x: Tensor, residual: Tensor) -> Tensor:
    """Compute residual + a · sigmoid(b) in float32 and round the result to the dtype of ``residual``."""
    return _gated_residual(x, residual)


@torch.library.custom_op("sashimi_kernels::gated_residual", mutates_args=())
def _gated_residual(x: Tensor, residual: Tensor) -> Tensor:
    y = residual.new_empty(residual.shape)
    arguments = {
        **pointers(x=x, residual=residual, y=y),
        **_sizes(y),
        **strides("x", x),
        **strides("residual", residual),
    }
    constants = {**_BLOCKS, **common_multiple(x, residual)}
    launch(_gated_residual_kernel, _grid(y), arguments, constants, num_warps=_N_WARPS)
    return y


@torch.library.custom_op("sashimi_kernels::gated_residual_backward", mutates_args=())
def _gated_residual_backward(dy: Tensor, x: Tensor) -> Tensor:
    dx = x.new_empty(x.shape)
    arguments = {**pointers(dy=dy, x=x, dx=dx), **_sizes(dy), **strides("dy", dy), **strides("x", x)}
    constants = {**_BLOCKS, **common_multiple(x, dy)}
    launch(_gated_residual_backward_kernel, _grid(dy), arguments, constants, num_warps=_N_WARPS)
    return dx


@_gated_residual.register_fake
def _(x: Tensor, residual: Tensor) -> Tensor:
    return residual.new_empty(residual.shape)


@_gated_residual_backward.register_fake
def _(dy: Tensor, x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _keep_input(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor]:
    (x,) = ctx.saved_tensors
    return _gated_residual_backward(dy, x) if ctx.needs_input_grad[0] else None, dy


_gated_residual.register_autograd(_gradients, setup_context=_keep_input)
_gated_residual_backward.register_autograd(no_second_derivative("gated_residual"))


def launches() -> Iterator[Launch]:
    """Yield every form in which the kernels of this module are launched."""
    sizes = {"n_channels": "i32", "length": "i32"}
    for x, y, factor in itertools.product(FLOATS, FLOATS, MULTIPLES):
        constants = {**_BLOCKS, "MULTIPLE": factor}
        forward = {**pointers(x=x, residual=y, y=y), **sizes, **stride_types("x", "residual")}
        yield form(_gated_residual_kernel, forward, constants, _N_WARPS)
        backward = {**pointers(dy=y, x=x, dx=x), **sizes, **stride_types("dy", "x")}
        yield form(_gated_residual_backward_kernel, backward, constants, _N_WARPS)


def _sizes(y: Tensor) -> dict[str, int]:
    return {"n_channels": y.shape[1], "length": y.shape[2]}


def _grid(y: Tensor) -> tuple[int, int, int]:
    """Return the grid: one program per tile of (B, H, L)."""
    batch, n_channels, length = y.shape
    return triton.cdiv(length, _BLOCKS["BLOCK_L"]), triton.cdiv(n_channels, _BLOCKS["BLOCK_H"]), batch


@triton.jit
def _gated_residual_kernel(
    x_ptr,
    residual_ptr,
    y_ptr,
    n_channels,
    length,
    x_batch_stride,
    x_channel_stride,
    x_position_stride,
    residual_batch_stride,
    residual_channel_stride,
    residual_position_stride,
    BLOCK_H: tl.constexpr,
    BLOCK_L: tl.constexpr,
    MULTIPLE: tl.constexpr,
):
    length = multiple(length, MULTIPLE)
    x_channel_stride = multiple(x_channel_stride, MULTIPLE)
    residual_channel_stride = multiple(residual_channel_stride, MULTIPLE)
    positions = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)[None, :]
    channels = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]
    pid_batch = tl.program_id(2).to(tl.int64)
    mask = (channels < n_channels) & (positions < length)
    x_offsets = channels * x_channel_stride + positions * x_position_stride
    residual_offsets = channels * residual_channel_stride + positions * residual_position_stride
    x_ptr += pid_batch * multiple(x_batch_stride, MULTIPLE)
    value = tl.load(x_ptr + x_offsets, mask).to(tl.float32)
    gate = tl.load(x_ptr + n_channels * x_channel_stride + x_offsets, mask).to(tl.float32)
    residual_ptr += pid_batch * multiple(residual_batch_stride, MULTIPLE)
    residual = tl.load(residual_ptr + residual_offsets, mask).to(tl.float32)
    y_ptr += pid_batch * n_channels * length
    tl.store(y_ptr + channels * length + positions, residual + value * tl.sigmoid(gate), mask)


@triton.jit
def _gated_residual_backward_kernel(
    dy_ptr,
    x_ptr,
    dx_ptr,
    n_channels,
    length,
    dy_batch_stride,
    dy_channel_stride,
    dy_position_stride,
    x_batch_stride,
    x_channel_stride,
    x_position_stride,
    BLOCK_H: tl.constexpr,
    BLOCK_L: tl.constexpr,
    MULTIPLE: tl.constexpr,
):
    length = multiple(length, MULTIPLE)
    x_channel_stride = multiple(x_channel_stride, MULTIPLE)
    dy_channel_stride = multiple(dy_channel_stride, MULTIPLE)
    positions = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)[None, :]
    channels = tl.program_id(1) * BLOCK_H + tl.arange(0, BLOCK_H)[:, None]
    pid_batch = tl.program_id(2).to(tl.int64)
    mask = (channels < n_channels) & (positions < length)
    x_offsets = channels * x_channel_stride + positions * x_position_stride
    dy_offsets = channels * dy_channel_stride + positions * dy_position_stride
    x_ptr += pid_batch * multiple(x_batch_stride, MULTIPLE)
    value = tl.load(x_ptr + x_offsets, mask).to(tl.float32)
    sigmoid = tl.sigmoid(tl.load(x_ptr + n_channels * x_channel_stride + x_offsets, mask).to(tl.float32))
    dy_ptr += pid_batch * multiple(dy_batch_stride, MULTIPLE)
    dy = tl.load(dy_ptr + dy_offsets, mask).to(tl.float32)
    dx_ptr += 2 * pid_batch * n_channels * length
    dx_offsets = channels * length + positions
    tl.store(dx_ptr + dx_offsets, dy * sigmoid, mask)
    tl.store(dx_ptr + n_channels * length + dx_offsets, dy * value * sigmoid * (1 - sigmoid), mask)
