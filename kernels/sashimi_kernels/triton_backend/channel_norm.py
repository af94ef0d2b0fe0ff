"""Both channel norms with their bias, in one read and one write of x.

With the mean μ and the biased variance of the H channels at a position, r = 1/√(variance + ε) and x̂ = (x - μ) r,

    layer    y = w x̂ + o + bias             w, o per channel
    scalar   y = g (x̂ + s r) + bias         one g, one s

Centered moments of blocks of channels are combined by the rule of Chan, Golub and LeVeque (1979), which avoids
differences of large squares. The backward pass recomputes them from x, the only signal that is saved. With e = w dy in
the layer norm, e = g dy in the scalar norm, and means <·> over the channels,

    dx = r (e - <e> - x̂ (<e x̂> + s r <e>))      s = 0 in the layer norm
    dw = Σ dy x̂    do = Σ dy    dg = Σ dy (x̂ + s r)    ds = Σ g r dy    dbias = Σ_positions dy

where every program writes the sums over the positions of its tile, and PyTorch adds them in a fixed order. No term has
a power of r above the second, so gradients are finite in float32 for ε = 1e-30 and equal channels.

Each program handles all channels of a tile of positions, in blocks. A pass over the blocks starts with the last block
of the previous pass, which is still in registers. Up to 128 channels are read once. With more channels, all but one
block are read again from the cache.
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

# Positions of a tile by channels of a tile: two tiles fit the registers of eight warps.
_TILES = {64: 64, 128: 32}
_N_WARPS = 8


def scalar_norm(x: Tensor, gain: Tensor, shift: Tensor, bias: Tensor | None, epsilon: float) -> Tensor:
    """Return gain · (x - mean + shift) / √(variance + epsilon) + bias."""
    return channel_norm(x, gain.float(), shift.float(), None if bias is None else bias.float(), epsilon, True)


def layer_norm(x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor | None, epsilon: float) -> Tensor:
    """Return weight · (x - mean) / √(variance + epsilon) + offset + bias."""
    return channel_norm(x, weight.float(), offset.float(), None if bias is None else bias.float(), epsilon, False)


@torch.library.custom_op("sashimi_kernels::channel_norm", mutates_args=())
def channel_norm(
    x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor | None, epsilon: float, scalar: bool
) -> Tensor:
    """Compute either norm with float32 parameters. In the scalar norm, ``weight`` is the gain, ``offset`` the shift."""
    y = x.new_empty(x.shape)
    if bias is not None and bias.stride(1) != 1:
        bias = bias.contiguous()
    tensors = pointers(x=x, weight=weight.contiguous(), offset=offset.contiguous(), bias=bias, y=y)
    sizes = {**_sizes(x, epsilon), "bias_batch_stride": 0 if bias is None else bias.stride(0)}
    constants = {**_tile(x.shape[1], scalar), **common_multiple(x)}
    launch(_channel_norm_kernel, _grid(x, constants), {**tensors, **sizes}, constants, _N_WARPS)
    return y


@torch.library.custom_op("sashimi_kernels::channel_norm_backward", mutates_args=())
def channel_norm_backward(
    dy: Tensor,
    dresidual: Tensor | None,
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    has_bias: bool,
    epsilon: float,
    scalar: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of x, weight, offset and bias. That of the bias is empty if it is not computed.

    ``dresidual`` is added to the gradient of x.
    """
    constants = {**_tile(x.shape[1], scalar), **common_multiple(x, dy)}
    grid = _grid(x, constants)
    dx = x.new_empty(x.shape)
    n_tiles, batch = grid
    dweight = weight.new_empty(batch, n_tiles, weight.shape[0])
    dshift = offset.new_empty(batch, n_tiles) if scalar else None
    # The gradient of the layer norm's offset is that of the bias, summed over the batch.
    dbias = offset.new_empty(batch, n_tiles, x.shape[1]) if has_bias or not scalar else None
    dresidual = None if dresidual is None else dresidual.contiguous()
    inputs = pointers(dy=dy, dresidual=dresidual, x=x, weight=weight.contiguous(), offset=offset.contiguous())
    outputs = pointers(dx=dx, dweight=dweight, dshift=dshift, dbias=dbias)
    arguments = {**inputs, **outputs, **_sizes(x, epsilon), **strides("dy", dy)}
    launch(_channel_norm_backward_kernel, grid, arguments, constants, _N_WARPS)
    dbias = offset.new_empty(0) if dbias is None else dbias.sum(1)
    doffset = dbias.sum(0) if dshift is None else dshift.sum().unsqueeze(0)
    return dx, dweight.sum((0, 1)), doffset, dbias


@channel_norm.register_fake
def _(x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor | None, epsilon: float, scalar: bool) -> Tensor:
    return x.new_empty(x.shape)


@channel_norm_backward.register_fake
def _(
    dy: Tensor,
    dresidual: Tensor | None,
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    has_bias: bool,
    epsilon: float,
    scalar: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    bias_shape = (0,) if scalar and not has_bias else x.shape[:2]
    return (
        x.new_empty(x.shape),
        weight.new_empty(weight.shape),
        offset.new_empty(offset.shape),
        offset.new_empty(bias_shape),
    )


def _keep_inputs(ctx: Any, inputs: tuple, output: Tensor) -> None:
    x, weight, offset, bias, ctx.epsilon, ctx.scalar = inputs
    ctx.has_bias = bias is not None
    ctx.save_for_backward(x, weight, offset)


def _gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    has_bias = ctx.has_bias and ctx.needs_input_grad[3]
    *gradients, dbias = channel_norm_backward(dy, None, *ctx.saved_tensors, has_bias, ctx.epsilon, ctx.scalar)
    return *gradients, dbias if has_bias else None, None, None


channel_norm.register_autograd(_gradients, setup_context=_keep_inputs)
channel_norm_backward.register_autograd(no_second_derivative("scalar_norm and layer_norm"))


def launches() -> Iterator[Launch]:
    """Yield every form in which the kernels of this module are launched."""
    sizes = {"epsilon": "fp32", "n_channels": "i32", "length": "i32", **stride_types("x")}
    parameters = pointers(weight="*fp32", offset="*fp32")
    for x, n_channels, scalar, factor in itertools.product(FLOATS, _TILES, (False, True), MULTIPLES):
        constants = {**_tile(n_channels, scalar), "MULTIPLE": factor}
        dshift = "*fp32" if scalar else None
        for bias in ("*fp32", None):
            forward = {**pointers(x=x), **parameters, **pointers(bias=bias, y=x), **sizes, "bias_batch_stride": "i32"}
            yield form(_channel_norm_kernel, forward, constants, _N_WARPS)
        for dbias, dresidual in itertools.product(("*fp32", None) if scalar else ("*fp32",), (x, None)):
            outputs = pointers(dx=x, dweight="*fp32", dshift=dshift, dbias=dbias)
            inputs = {**pointers(dy=x, dresidual=dresidual, x=x), **parameters}
            backward = {**inputs, **outputs, **sizes, **stride_types("dy")}
            yield form(_channel_norm_backward_kernel, backward, constants, _N_WARPS)


def _tile(n_channels: int, scalar: bool) -> dict[str, Any]:
    """Return the constants of the smallest tile that holds all channels, or of the largest tile."""
    block = min((block for block in _TILES if n_channels <= block), default=max(_TILES))
    return {"SCALAR": scalar, "BLOCK_H": block, "BLOCK_L": _TILES[block]}


def _grid(x: Tensor, constants: dict[str, Any]) -> tuple[int, int]:
    """Return the grid: one program per tile of positions and batch element."""
    return triton.cdiv(x.shape[2], constants["BLOCK_L"]), x.shape[0]


def _sizes(x: Tensor, epsilon: float) -> dict[str, Any]:
    return {"epsilon": epsilon, "n_channels": x.shape[1], "length": x.shape[2], **strides("x", x)}


@triton.jit
def _channel_norm_kernel(
    x_ptr,
    weight_ptr,
    offset_ptr,
    bias_ptr,
    y_ptr,
    epsilon,
    n_channels,
    length,
    x_batch_stride,
    x_channel_stride,
    x_position_stride,
    bias_batch_stride,
    SCALAR: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_L: tl.constexpr,
    MULTIPLE: tl.constexpr,
):
    length = multiple(length, MULTIPLE)
    x_channel_stride = multiple(x_channel_stride, MULTIPLE)
    position_offsets = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)
    pid_batch = tl.program_id(1).to(tl.int64)
    x_ptr += pid_batch * multiple(x_batch_stride, MULTIPLE)
    y_ptr += pid_batch * n_channels * length
    n_blocks = tl.cdiv(n_channels, BLOCK_H)
    x, mean, scale = _last_block_and_moments(
        x_ptr, position_offsets, epsilon, n_channels, length, x_channel_stride, x_position_stride, BLOCK_H, BLOCK_L
    )
    for index in range(0, n_blocks):
        channel_offsets = (n_blocks - 1 - index) * BLOCK_H + tl.arange(0, BLOCK_H)
        channel_mask = channel_offsets < n_channels
        mask = channel_mask[:, None] & (position_offsets < length)[None, :]
        # The first block of this loop is already loaded.
        x_offsets = channel_offsets[:, None] * x_channel_stride + position_offsets[None, :] * x_position_stride
        x = tl.load(x_ptr + x_offsets, mask & (index > 0), other=x)
        y = (x.to(tl.float32) - mean[None, :]) * scale[None, :]
        if SCALAR:
            y = tl.load(weight_ptr) * (y + tl.load(offset_ptr) * scale[None, :])
        else:
            y *= tl.load(weight_ptr + channel_offsets, channel_mask, other=0.0)[:, None]
            y += tl.load(offset_ptr + channel_offsets, channel_mask, other=0.0)[:, None]
        if bias_ptr is not None:
            y += tl.load(bias_ptr + pid_batch * bias_batch_stride + channel_offsets, channel_mask, other=0.0)[:, None]
        tl.store(y_ptr + channel_offsets[:, None] * length + position_offsets[None, :], y, mask)


@triton.jit
def _channel_norm_backward_kernel(
    dy_ptr,
    dresidual_ptr,
    x_ptr,
    weight_ptr,
    offset_ptr,
    dx_ptr,
    dweight_ptr,
    dshift_ptr,
    dbias_ptr,
    epsilon,
    n_channels,
    length,
    x_batch_stride,
    x_channel_stride,
    x_position_stride,
    dy_batch_stride,
    dy_channel_stride,
    dy_position_stride,
    SCALAR: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_L: tl.constexpr,
    MULTIPLE: tl.constexpr,
):
    length = multiple(length, MULTIPLE)
    x_channel_stride = multiple(x_channel_stride, MULTIPLE)
    dy_channel_stride = multiple(dy_channel_stride, MULTIPLE)
    position_offsets = tl.program_id(0) * BLOCK_L + tl.arange(0, BLOCK_L)
    pid_batch = tl.program_id(1).to(tl.int64)
    pid_sum = pid_batch * tl.num_programs(0) + tl.program_id(0)
    x_ptr += pid_batch * multiple(x_batch_stride, MULTIPLE)
    dy_ptr += pid_batch * multiple(dy_batch_stride, MULTIPLE)
    dx_ptr += pid_batch * n_channels * length
    if dresidual_ptr is not None:
        dresidual_ptr += pid_batch * n_channels * length
    n_blocks = tl.cdiv(n_channels, BLOCK_H)
    x, mean, scale = _last_block_and_moments(
        x_ptr, position_offsets, epsilon, n_channels, length, x_channel_stride, x_position_stride, BLOCK_H, BLOCK_L
    )
    dy = tl.zeros([BLOCK_H, BLOCK_L], dy_ptr.dtype.element_ty)
    sum_dy = tl.zeros([BLOCK_L], tl.float32)
    sum_product = tl.zeros([BLOCK_L], tl.float32)
    for index in range(0, n_blocks):
        channel_offsets = (n_blocks - 1 - index) * BLOCK_H + tl.arange(0, BLOCK_H)
        channel_mask = channel_offsets < n_channels
        mask = channel_mask[:, None] & (position_offsets < length)[None, :]
        x_offsets = channel_offsets[:, None] * x_channel_stride + position_offsets[None, :] * x_position_stride
        dy_offsets = channel_offsets[:, None] * dy_channel_stride + position_offsets[None, :] * dy_position_stride
        x = tl.load(x_ptr + x_offsets, mask & (index > 0), other=x)
        dy = tl.load(dy_ptr + dy_offsets, mask, other=0.0)
        weighted = dy.to(tl.float32)
        product = weighted * (x.to(tl.float32) - mean[None, :]) * scale[None, :]
        sum_offsets = pid_sum * n_channels + channel_offsets
        if dbias_ptr is not None:
            tl.store(dbias_ptr + sum_offsets, tl.sum(weighted, 1), channel_mask)
        if not SCALAR:
            tl.store(dweight_ptr + sum_offsets, tl.sum(product, 1), channel_mask)
            weight = tl.load(weight_ptr + channel_offsets, channel_mask, other=0.0)[:, None]
            weighted *= weight
            product *= weight
        sum_dy += tl.sum(weighted, 0)
        sum_product += tl.sum(product, 0)
    if SCALAR:
        # So far the sums exclude the gain, because the gradient of the gain does, too.
        gain = tl.load(weight_ptr)
        sum_product += tl.load(offset_ptr) * scale * sum_dy
        tl.store(dweight_ptr + pid_sum, tl.sum(sum_product))
        tl.store(dshift_ptr + pid_sum, gain * tl.sum(scale * sum_dy))
    mean_dy, mean_product = sum_dy / n_channels, sum_product / n_channels
    for index in range(0, n_blocks):
        channel_offsets = index * BLOCK_H + tl.arange(0, BLOCK_H)
        channel_mask = channel_offsets < n_channels
        mask = channel_mask[:, None] & (position_offsets < length)[None, :]
        x_offsets = channel_offsets[:, None] * x_channel_stride + position_offsets[None, :] * x_position_stride
        dy_offsets = channel_offsets[:, None] * dy_channel_stride + position_offsets[None, :] * dy_position_stride
        x = tl.load(x_ptr + x_offsets, mask & (index > 0), other=x)
        dy = tl.load(dy_ptr + dy_offsets, mask & (index > 0), other=dy)
        weighted = dy.to(tl.float32)
        if not SCALAR:
            weighted *= tl.load(weight_ptr + channel_offsets, channel_mask, other=0.0)[:, None]
        normalized = (x.to(tl.float32) - mean[None, :]) * scale[None, :]
        dx = (weighted - mean_dy[None, :] - normalized * mean_product[None, :]) * scale[None, :]
        if SCALAR:
            dx *= gain
        dx_offsets = channel_offsets[:, None] * length + position_offsets[None, :]
        if dresidual_ptr is not None:
            dx += tl.load(dresidual_ptr + dx_offsets, mask, other=0.0)
        tl.store(dx_ptr + dx_offsets, dx, mask)


@triton.jit
def _last_block_and_moments(
    x_ptr,
    position_offsets,
    epsilon,
    n_channels,
    length,
    channel_stride,
    position_stride,
    BLOCK_H: tl.constexpr,
    BLOCK_L: tl.constexpr,
):
    """Return the last block of channels as loaded, and the mean and 1 / √(variance + epsilon) of all channels."""
    x = tl.zeros([BLOCK_H, BLOCK_L], x_ptr.dtype.element_ty)
    mean = tl.zeros([BLOCK_L], tl.float32)
    squares = tl.zeros([BLOCK_L], tl.float32)
    for start in range(0, n_channels, BLOCK_H):
        channel_offsets = start + tl.arange(0, BLOCK_H)
        channel_mask = channel_offsets < n_channels
        mask = channel_mask[:, None] & (position_offsets < length)[None, :]
        offsets = channel_offsets[:, None] * channel_stride + position_offsets[None, :] * position_stride
        x = tl.load(x_ptr + offsets, mask, other=0.0)
        values = x.to(tl.float32)
        n_new = tl.minimum(n_channels - start, BLOCK_H)
        new_mean = tl.sum(values, 0) / n_new
        centered = tl.where(mask, values - new_mean[None, :], 0.0)
        difference = new_mean - mean
        share = n_new / (start + n_new)
        squares += tl.sum(centered * centered, 0) + difference * difference * (start * share)
        mean += difference * share
    return x, mean, tl.rsqrt(squares / n_channels + epsilon)
