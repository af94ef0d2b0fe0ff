"""The feed-forward layer in one pass over memory: y = x + W₂ GELU(h) + b₂ + skip with h = W₁ n + b₁ and n = norm(x).

A program has all channels of a tile of positions, so the statistics of the norm, n and the inner channels stay on the
chip. It goes through blocks of inner channels and adds what each gives to y.

With the mean μ and the biased variance of the channels at a position, r = 1 / √(variance + ε) and x̂ = (x - μ) r,

    layer    n = w x̂ + o            w, o per channel
    scalar   n = g (x̂ + s r)        one g, one s

The backward pass recomputes everything from x, the only signal that is saved (the weights are saved as rounded in the
forward pass):

    dh = (W₂ᵀ dy) GELU'(h)    dn = W₁ᵀ dh    dW₂ = Σ dy GELU(h)ᵀ    db₂ = Σ dy    dW₁ = Σ dh nᵀ    db₁ = Σ dh

and the gradients of the norm as in :mod:`sashimi_kernels.triton_backend.channel_norm`, with no power of r above the
second. One kernel writes dx, GELU(h), dh, μ and r of every position, and the norm's gradients of every tile. Two
launches sum the gradients of the weights over shares of the positions, and PyTorch adds shares and tiles.

Inputs with more channels than a tile has take :mod:`sashimi_kernels.triton_backend.wide_feed_forward`.
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
    moments,
    norm_gradients,
    normalize,
    padded,
    run,
    same_dtype,
    shortened,
    split,
    tile_of,
)
from sashimi_kernels.triton_backend.weight_gradient import Norm, n_shares, share_sums
from sashimi_kernels.triton_backend.wide_feed_forward import wide_feed_forward, wide_feed_forward_backward

# The tiles of "hopper" are the fastest right ones of those that were measured on an H200 (docs/gpu.md). With one stage,
# Triton 3.6 compiles the backward kernel wrongly for some of them.
_TILES: Tiles = {
    "hopper": {64: Tile(128, 64, 4, 1), 128: Tile(64, 64, 4, 2), 256: Tile(64, 32, 8, 2)},
    "blackwell": {64: Tile(128, 64, 8, 2), 128: Tile(128, 64, 8, 1), 256: Tile(64, 64, 8, 1)},
    "ampere": {64: Tile(128, 64, 8, 1), 128: Tile(64, 64, 8, 1)},
    "cdna": {64: Tile(128, 64, 8, 1), 128: Tile(64, 64, 8, 1)},
    "single": {64: Tile(32, 32, 8, 1)},
}
_BACKWARD_TILES: Tiles = {
    "hopper": {64: Tile(32, 64, 4, 2), 128: Tile(32, 64, 4, 2), 256: Tile(32, 64, 8, 2)},
    "blackwell": {64: Tile(64, 64, 8, 2), 128: Tile(32, 64, 4, 2), 256: Tile(32, 32, 8, 1)},
    "ampere": {64: Tile(64, 64, 8, 1), 128: Tile(32, 64, 8, 1)},
    "cdna": {64: Tile(64, 64, 8, 1), 128: Tile(32, 64, 4, 1)},
    "single": {64: Tile(32, 16, 8, 1)},
}
_PARAMETERS = "norm_weight norm_offset input_weight input_bias output_weight output_bias"


def feed_forward(
    x: Tensor,
    norm: str,
    norm_weight: Tensor,
    norm_offset: Tensor,
    epsilon: float,
    input_weight: Tensor,
    input_bias: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
    skip: Tensor | None,
) -> Tensor:
    """Return the output of the layer."""
    parameters = same_dtype(x, norm_weight, norm_offset, input_weight, input_bias, output_weight, output_bias)
    skip = None if skip is None else padded(skip.to(x.dtype))
    y, _ = _feed_forward(padded(x), *parameters, skip, epsilon, norm == "layer", torch.is_grad_enabled())
    return shortened(y, x)


@torch.library.custom_op("sashimi_kernels::feed_forward", mutates_args=())
def _feed_forward(
    x: Tensor,
    norm_weight: Tensor,
    norm_offset: Tensor,
    input_weight: Tensor,
    input_bias: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
    skip: Tensor | None,
    epsilon: float,
    layer: bool,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """Return the output and, if ``keep``, both weights in the dtype of ``x`` if they have another one, or nothing."""
    x, y, kept = aligned(x), x.new_empty(x.shape), _kept(keep, x, input_weight, output_weight)
    parameters = (norm_weight, norm_offset, input_weight, input_bias, output_weight, output_bias)
    if not fits(x, input_weight.shape[0], _TILES, _BACKWARD_TILES):
        return wide_feed_forward(x, *parameters, skip, epsilon, layer), kept
    arguments = {**_parameters(parameters), **_sizes(x, input_weight, epsilon, layer)}
    places = kept.split(input_weight.numel()) if kept.shape[0] else (x, x)
    arguments |= pointers(x=x, skip=x if skip is None else aligned(skip), y=y)
    arguments |= pointers(kept_input=places[0], kept_output=places[1])
    arguments |= {"has_skip": int(skip is not None), "keep": int(kept.shape[0] > 0)}
    tile = tile_of(_TILES, x)
    grid = (triton.cdiv(x.shape[2], tile.positions), x.shape[0])
    run(feed_forward_kernel, _TILES, grid, arguments, x)
    return y, kept


def _kept(keep: bool, x: Tensor, input_weight: Tensor, output_weight: Tensor) -> Tensor:
    keep = keep and fits(x, input_weight.shape[0], _TILES, _BACKWARD_TILES)
    return kept_weights(keep, x, input_weight, output_weight)


@torch.library.custom_op("sashimi_kernels::feed_forward_backward", mutates_args=())
def _feed_forward_backward(
    dy: Tensor,
    x: Tensor,
    norm_weight: Tensor,
    norm_offset: Tensor,
    input_weight: Tensor,
    input_bias: Tensor,
    output_weight: Tensor,
    output_bias: Tensor,
    epsilon: float,
    layer: bool,
    weights: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of x, of the norm's parameters and of the maps' parameters, each one after the other.

    The weights have the dtype of ``x``; their gradients have that of the other parameters. If not ``weights``, only the
    gradient of x is computed, and the others are empty.
    """
    (batch, n_channels, length), n_inner = x.shape, input_weight.shape[0]
    x, dy = aligned(x), aligned(dy)
    parameters = (norm_weight, norm_offset, input_weight, input_bias, output_weight, output_bias)
    if not fits(x, n_inner, _TILES, _BACKWARD_TILES):
        return wide_feed_forward_backward(dy, x, *parameters, epsilon, layer, weights)
    tile = tile_of(_BACKWARD_TILES, x)
    grid = (triton.cdiv(length, tile.positions), batch)
    dx, g, dh = x.new_empty(x.shape), *x.new_empty(2, batch, n_inner, length)
    moments, norm_sums = (
        x.new_empty(shape, dtype=torch.float32) for shape in ((batch, 2, length), (batch, grid[0], 2, n_channels))
    )
    arguments = {**_parameters(parameters), **_sizes(x, input_weight, epsilon, layer)}
    arguments |= pointers(dy=dy, x=x, dx=dx, g=g, dh=dh, moments=moments, norm_sums=norm_sums)
    run(feed_forward_backward_kernel, _BACKWARD_TILES, grid, arguments, x)
    if not weights:
        return dx, x.new_empty(0), x.new_empty(0)
    dnorm = norm_sums.sum((0, 1) if layer else (0, 1, 3)).flatten()
    n_input, n_output = input_weight.numel() + n_inner, output_weight.numel() + n_channels
    n_rows = n_shares(x, n_inner, n_channels)
    sums = x.new_empty(n_rows, n_input + n_output, dtype=torch.float32)
    norm = Norm(moments, aligned(norm_weight), aligned(norm_offset), layer)
    share_sums(sums[:, :n_input], dh, x, norm=norm)
    share_sums(sums[:, n_input:], dy, g)
    return dx, dnorm.to(norm_weight.dtype), sums.sum(0).to(norm_weight.dtype)


@_feed_forward.register_fake
def _(x: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), _kept(others[-1], x, others[2], others[4])


@_feed_forward_backward.register_fake
def _(dy: Tensor, x: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    norm_weight, norm_offset, *maps, _, _, weights = others
    norm_size = norm_weight.numel() + norm_offset.numel() if weights else 0
    size = sum(parameter.numel() for parameter in maps) if weights else 0
    return x.new_empty(x.shape), norm_weight.new_empty(norm_size), norm_weight.new_empty(size)


def _keep_inputs(ctx: Any, inputs: tuple, output: tuple[Tensor, Tensor]) -> None:
    x, norm_weight, norm_offset, *maps, _, ctx.epsilon, ctx.layer, _ = inputs
    _, kept = output
    ctx.set_materialize_grads(False)
    if kept.shape[0]:
        maps[0], maps[2] = split(kept, maps[0], maps[2])
    ctx.save_for_backward(x, norm_weight, norm_offset, *maps)


def _gradients(ctx: Any, dy: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    *needed, need_skip = ctx.needs_input_grad[:8]
    dskip = dy if need_skip else None
    if not any(needed):
        return *[None] * 7, dskip, None, None, None
    x, *parameters = ctx.saved_tensors
    dx, dnorm, dmaps = _feed_forward_backward(dy, x, *parameters, ctx.epsilon, ctx.layer, any(needed[1:]))
    return dx, *split(dnorm, *parameters[:2]), *split(dmaps, *parameters[2:]), dskip, None, None, None


_feed_forward.register_autograd(_gradients, setup_context=_keep_inputs)
_feed_forward_backward.register_autograd(no_second_derivative("feed_forward"))


def launches() -> Iterator[Launch]:
    """Yield every form in which the kernels of this module are launched."""
    sizes, epsilon = "n_channels n_inner layer", {"epsilon": "fp32"}
    names = ("x skip y kept_input kept_output", _PARAMETERS, "")
    yield from forms(feed_forward_kernel, _TILES, names, f"{sizes} has_skip keep", epsilon)
    features, parameters = "dy x dx g dh input_weight output_weight", "norm_weight norm_offset input_bias output_bias"
    names = (features, parameters, "moments norm_sums")
    yield from forms(feed_forward_backward_kernel, _BACKWARD_TILES, names, sizes, epsilon)


def _parameters(parameters: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return pointers(**{name: aligned(x) for name, x in zip(_PARAMETERS.split(), parameters, strict=True)})


def _sizes(x: Tensor, input_weight: Tensor, epsilon: float, layer: bool) -> dict[str, Any]:
    n_inner, n_channels = input_weight.shape
    sizes = {"epsilon": epsilon, "n_channels": n_channels, "n_inner": n_inner, "layer": int(layer)}
    return {**sizes, **length_argument(x, max(n_channels, n_inner))}


@triton.jit
def feed_forward_kernel(
    x_ptr,
    skip_ptr,
    norm_weight_ptr,
    norm_offset_ptr,
    input_weight_ptr,
    input_bias_ptr,
    output_weight_ptr,
    output_bias_ptr,
    y_ptr,
    kept_input_ptr,
    kept_output_ptr,
    epsilon,
    n_channels,
    n_inner,
    layer,
    has_skip,
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
    channel_mask, position_mask = channels < n_channels, positions < length
    mask = channel_mask[:, None] & position_mask[None, :]
    offsets = channels[:, None] * length + positions[None, :]
    first = tl.program_id(1).to(tl.int64) * n_channels * length
    x = tl.load(x_ptr + first + offsets, mask, other=0.0)
    mean, scale = moments(x, channel_mask, position_mask, epsilon, n_channels)
    normalized = normalize(x, mean, scale, norm_weight_ptr, norm_offset_ptr, channels, n_channels, layer).to(dtype)
    y = x.to(tl.float32) + load_bias(output_bias_ptr, channels, n_channels)
    y += tl.load(skip_ptr + first + offsets, mask & (has_skip != 0), other=0.0).to(tl.float32)
    for start in range(0, n_inner, ROWS):
        rows = start + tl.arange(0, ROWS)
        input_weight = load_weight(input_weight_ptr, rows, channels, n_inner, n_channels, dtype)
        h = tl.dot(input_weight, normalized, input_precision=PRECISION) + load_bias(input_bias_ptr, rows, n_inner)
        output_weight = load_weight(output_weight_ptr, channels, rows, n_channels, n_inner, dtype)
        y = tl.dot(output_weight, gelu(h).to(dtype), y, input_precision=PRECISION)
    tl.store(y_ptr + first + offsets, y.to(dtype), mask)
    keep_weight(input_weight_ptr, kept_input_ptr, keep * n_inner * n_channels)
    keep_weight(output_weight_ptr, kept_output_ptr, keep * n_inner * n_channels)


@triton.jit
def feed_forward_backward_kernel(
    dy_ptr,
    x_ptr,
    norm_weight_ptr,
    norm_offset_ptr,
    input_weight_ptr,
    input_bias_ptr,
    output_weight_ptr,
    output_bias_ptr,
    dx_ptr,
    g_ptr,
    dh_ptr,
    moments_ptr,
    norm_sums_ptr,
    epsilon,
    n_channels,
    n_inner,
    layer,
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
    channel_mask, position_mask = channels < n_channels, positions < length
    mask = channel_mask[:, None] & position_mask[None, :]
    pid_batch = tl.program_id(1).to(tl.int64)
    offsets = channels[:, None] * length + positions[None, :]
    x_ptr += pid_batch * n_channels * length
    dy_ptr += pid_batch * n_channels * length
    g_ptr += pid_batch * n_inner * length
    dh_ptr += pid_batch * n_inner * length
    x = tl.load(x_ptr + offsets, mask, other=0.0)
    dy = tl.load(dy_ptr + offsets, mask, other=0.0)
    mean, scale = moments(x, channel_mask, position_mask, epsilon, n_channels)
    moments_ptr += pid_batch * 2 * length
    tl.store(moments_ptr + positions, mean, position_mask)
    tl.store(moments_ptr + length + positions, scale, position_mask)
    normalized = normalize(x, mean, scale, norm_weight_ptr, norm_offset_ptr, channels, n_channels, layer).to(dtype)
    dn = tl.zeros((CHANNELS, POSITIONS), tl.float32)
    for start in range(0, n_inner, ROWS):
        rows = start + tl.arange(0, ROWS)
        inner_mask = (rows < n_inner)[:, None] & position_mask[None, :]
        inner_offsets = rows[:, None] * length + positions[None, :]
        input_weight = load_weight(input_weight_ptr, rows, channels, n_inner, n_channels, dtype)
        h = tl.dot(input_weight, normalized, input_precision=PRECISION) + load_bias(input_bias_ptr, rows, n_inner)
        tl.store(g_ptr + inner_offsets, gelu(h).to(dtype), inner_mask)
        output_weight = load_weight(output_weight_ptr, channels, rows, n_channels, n_inner, dtype)
        dh = tl.dot(tl.trans(output_weight), dy, input_precision=PRECISION)
        dh = (dh * gelu_derivative(h)).to(dtype)
        tl.store(dh_ptr + inner_offsets, dh, inner_mask)
        dn = tl.dot(tl.trans(input_weight), dh, dn, input_precision=PRECISION)
    # Loaded again, from the cache, because the registers are full of sums until here.
    x = tl.load(x_ptr + offsets, mask, other=0.0)
    mean, scale = moments(x, channel_mask, position_mask, epsilon, n_channels)
    dx, dweight, doffset = norm_gradients(
        dn, x, mean, scale, norm_weight_ptr, norm_offset_ptr, channels, n_channels, layer
    )
    dx += tl.load(dy_ptr + offsets, mask, other=0.0).to(tl.float32)
    tl.store(dx_ptr + pid_batch * n_channels * length + offsets, dx.to(dtype), mask)
    norm_sums_ptr += (pid_batch * tl.num_programs(0) + tl.program_id(0)) * 2 * n_channels
    tl.store(norm_sums_ptr + channels, dweight, channel_mask)
    tl.store(norm_sums_ptr + n_channels + channels, doffset, channel_mask)
