"""Linear maps with any number of channels: blocked matrix products, fused with what surrounds them.

    z = W f(x) + c    y = e(z)

f is the identity or the exact GELU. e, the epilogue, is one of

    linear           y = z, to which up to two signals are added
    gelu             y = GELU(z)
    gated            y = a · sigmoid(b) for the halves a, b of the channels of z, to which a signal is added
    gate_gradient    (da, db) of the gated unit: da = dy s, db = dy a s (1 - s) with s = sigmoid(b)
    gelu_gradient    z · GELU'(h)

A program computes a block of output channels of a tile of positions and goes through blocks of input channels. With
halves, its block has rows of both. All programs of a tile of positions are neighbors, so that x is read from memory
once, and then from the cache. The transposed map, Wᵀ x, reads the same weight by columns and has no bias.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sashimi_kernels.triton_backend.arguments import multiple, pointers
from sashimi_kernels.triton_backend.launch import Launch, launch
from sashimi_kernels.triton_backend.pointwise_tiles import (
    TARGETS,
    Tile,
    aligned,
    dtypes,
    gelu,
    gelu_derivative,
    gpu_of,
    is_single,
    length_argument,
    load_bias,
    load_weight,
)

# Tiles by GPU and size of the blocks of input channels. ``rows`` counts output channels, or those of both halves.
_TILES = {
    "hopper": (64, Tile(128, 128, 8, 3)),
    "blackwell": (64, Tile(128, 128, 8, 3)),
    "ampere": (32, Tile(64, 128, 8, 3)),
    "cdna": (32, Tile(128, 128, 8, 2)),
    "rdna": (32, Tile(64, 64, 8, 2)),
    "single": (32, Tile(64, 128, 8, 2)),
    "small single": (16, Tile(64, 64, 8, 1)),
}
_HALVES = ("gated", "gate_gradient")
_INTEGERS = ("n_inputs", "n_outputs", "n_added", "length")
# Epilogue, GELU of the input, transposed: every form of the kernel.
_FORMS = (
    ("linear", False, False),
    ("gelu", False, False),
    ("gated", True, False),
    ("gate_gradient", True, False),
    ("gelu_gradient", False, True),
    ("linear", False, True),
)


def wide_linear(
    x: Tensor, weight: Tensor, bias: Tensor, epilogue: str = "linear", *others: Tensor, gelu: bool = False
) -> Tensor:
    """Return e(weight · f(x) + bias).

    Args:
        x: real (B, K, L), L is a multiple of 8.
        weight, bias: real (O, K) and (O,), rounded to the dtype of ``x``, and in float32.
        epilogue: "linear", "gelu", "gated" or "gate_gradient".
        others: signals in the dtype and size of the output that are added, or dy of the gated unit.
        gelu: f is the exact GELU.

    Returns:
        real (B, O, L) in the dtype of ``x``, or (B, O/2, L) if ``epilogue`` is "gated".
    """
    n_channels = weight.shape[0] // 2 if epilogue == "gated" else weight.shape[0]
    y = x.new_empty(x.shape[0], n_channels, x.shape[2])
    _run(x, weight, bias, others, y, epilogue, gelu)
    return y


def transposed_linear(x: Tensor, weight: Tensor, h: Tensor | None = None) -> Tensor:
    """Return weightᵀ · x, multiplied by GELU'(h) unless h is None. x is real (B, O, L) and weight is real (O, K)."""
    y = x.new_empty(x.shape[0], weight.shape[1], x.shape[2])
    _run(x, weight, None, () if h is None else (h,), y, "linear" if h is None else "gelu_gradient", False)
    return y


def launches() -> Iterator[Launch]:
    """Yield every form in which the kernel of this module is launched."""
    for (x, parameter), gpu in ((types, gpu) for types in dtypes() for gpu in _TILES):
        if is_single(gpu) != is_single(x):
            continue
        for epilogue, gelu_input, transposed in _FORMS:
            tensors, bias = pointers(x=x, weight=parameter, other=x, skip=x, y=x), pointers(bias=parameter)
            constants = _constants(gpu, x, epilogue, gelu_input, transposed)
            types = {**tensors, **({} if transposed else bias), **dict.fromkeys(_INTEGERS, "i32")}
            constants |= dict.fromkeys(bias) if transposed else {}
            yield Launch(wide_linear_kernel, types, constants, **_options(gpu), matrix=True, targets=TARGETS[gpu])


def _run(
    x: Tensor, weight: Tensor, bias: Tensor | None, others: tuple[Tensor, ...], y: Tensor, epilogue: str, gelu: bool
) -> None:
    """Launch the kernel. Without a bias, the map is transposed."""
    (batch, n_inputs, length), transposed = x.shape, bias is None
    n_outputs = weight.shape[1 if transposed else 0] // (2 if epilogue in _HALVES else 1)
    x = aligned(x)
    other, skip = ([aligned(signal) for signal in others] + [x, x])[:2]
    tensors = pointers(x=x, weight=aligned(weight), other=other, skip=skip, y=y)
    tensors |= pointers(bias=None if bias is None else aligned(bias))
    sizes = {"n_inputs": n_inputs, "n_outputs": n_outputs, "n_added": len(others)}
    sizes |= length_argument(x, max(n_inputs, y.shape[1]))
    constants = _constants(gpu_of(x), x.dtype, epilogue, gelu, transposed)
    n_blocks = triton.cdiv(n_outputs, constants["ROWS"])
    grid = (n_blocks * triton.cdiv(length, constants["POSITIONS"]), batch)
    launch(wide_linear_kernel, grid, {**tensors, **sizes}, constants, **_options(gpu_of(x)))


def _constants(gpu: str, dtype: torch.dtype | str, epilogue: str, gelu: bool, transposed: bool) -> dict[str, Any]:
    n_channels, tile = _TILES[gpu]
    constants = tile.constants(dtype, n_channels)
    if epilogue in _HALVES:
        constants["ROWS"] //= 2
    return {**constants, "EPILOGUE": epilogue, "GELU": gelu, "TRANSPOSED": transposed}


def _options(gpu: str) -> dict[str, int]:
    _, tile = _TILES[gpu]
    return {"num_warps": tile.num_warps, "num_stages": tile.num_stages}


@triton.jit
def wide_linear_kernel(
    x_ptr,
    weight_ptr,
    bias_ptr,
    other_ptr,
    skip_ptr,
    y_ptr,
    n_inputs,
    n_outputs,
    n_added,
    length,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,
    POSITIONS: tl.constexpr,
    EPILOGUE: tl.constexpr,
    GELU: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    ALIGNED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    length = multiple(length, ALIGNED)
    dtype: tl.constexpr = x_ptr.dtype.element_ty
    HALVES: tl.constexpr = EPILOGUE == "gated" or EPILOGUE == "gate_gradient"
    n_blocks = tl.cdiv(n_outputs, ROWS)
    rows = tl.program_id(0) % n_blocks * ROWS + tl.arange(0, ROWS)
    positions = tl.program_id(0) // n_blocks * POSITIONS + tl.arange(0, POSITIONS)
    pid_batch, position_mask = tl.program_id(1).to(tl.int64), positions < length
    x_ptr += pid_batch * n_inputs * length
    gate_weight_ptr = weight_ptr + n_outputs * n_inputs
    z = tl.zeros((ROWS, POSITIONS), tl.float32)
    gate = tl.zeros((ROWS, POSITIONS), tl.float32)
    for start in range(0, n_inputs, CHANNELS):
        channels = start + tl.arange(0, CHANNELS)
        x_mask = (channels < n_inputs)[:, None] & position_mask[None, :]
        x = tl.load(x_ptr + (channels[:, None] * length + positions[None, :]), x_mask, other=0.0)
        if GELU:
            x = gelu(x.to(tl.float32)).to(dtype)
        if TRANSPOSED:
            weight = tl.trans(load_weight(weight_ptr, channels, rows, n_inputs, n_outputs, dtype))
        else:
            weight = load_weight(weight_ptr, rows, channels, n_outputs, n_inputs, dtype)
        z = tl.dot(weight, x, z, input_precision=PRECISION)
        if HALVES:
            weight = load_weight(gate_weight_ptr, rows, channels, n_outputs, n_inputs, dtype)
            gate = tl.dot(weight, x, gate, input_precision=PRECISION)
    if bias_ptr is not None:
        z += load_bias(bias_ptr, rows, n_outputs)
    if HALVES:
        gate = tl.sigmoid(gate + load_bias(bias_ptr + n_outputs, rows, n_outputs))
    mask = (rows < n_outputs)[:, None] & position_mask[None, :]
    offsets = rows[:, None] * length + positions[None, :]
    first = pid_batch * n_outputs * length
    other = tl.load(other_ptr + first + offsets, mask & (n_added > 0), other=0.0).to(tl.float32)
    if EPILOGUE == "gate_gradient":
        y_ptr += 2 * first
        da = other * gate
        tl.store(y_ptr + offsets, da.to(dtype), mask)
        tl.store(y_ptr + n_outputs * length + offsets, (da * z * (1 - gate)).to(dtype), mask)
    else:
        if EPILOGUE == "gelu":
            y = gelu(z)
        elif EPILOGUE == "gelu_gradient":
            y = z * gelu_derivative(other)
        elif EPILOGUE == "gated":
            y = z * gate + other
        else:
            skip = tl.load(skip_ptr + first + offsets, mask & (n_added > 1), other=0.0)
            y = z + other + skip.to(tl.float32)
        tl.store(y_ptr + first + offsets, y.to(dtype), mask)
