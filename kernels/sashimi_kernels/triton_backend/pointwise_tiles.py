"""What the kernels of the linear maps share: tiles with all channels, GELU, the norm of a tile, arguments and forms.

A tile has all channels, padded to a power of two, of some positions. Half-precision products are exact and summed in
float32. Float32 products have the precision of :func:`matrix_precision`.
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from sashimi_kernels.triton_backend.arguments import FLOATS, pointers
from sashimi_kernels.triton_backend.chunk_tiles import matrix_precision
from sashimi_kernels.triton_backend.launch import Launch, launch

# Channels of a tile. Larger inputs do not fit the registers and the shared memory of a multiprocessor.
CHANNELS = (64, 128, 256)
_UNIT = 8


class Tile(NamedTuple):
    """Constants and launch options of a kernel for one number of channels.

    Args:
        positions: positions of a tile.
        rows: rows of the blocks of the other axis of the weights, over which the kernel iterates.
        num_warps, num_stages: launch options.
    """

    positions: int
    rows: int
    num_warps: int
    num_stages: int

    def run(self, kernel: Any, grid: tuple[int, ...], arguments: dict[str, Any], x: Tensor, n_channels: int) -> None:
        """Launch a kernel whose tiles have the channels and the dtype of ``x``, (B, channels, L)."""
        constants = self._constants(x.dtype, padded(n_channels), unit_of(x))
        launch(kernel, grid, arguments, constants, self.num_warps, self.num_stages)

    def form(self, kernel: Any, types: dict[str, str], dtype: str, n_channels: int, unit: int) -> Launch:
        """Return the description of such a launch."""
        constants = self._constants(dtype, n_channels, unit)
        return Launch(kernel, types, constants, self.num_warps, self.num_stages, matrix=True)

    def _constants(self, dtype: torch.dtype | str, n_channels: int, unit: int) -> dict[str, Any]:
        blocks = {"CHANNELS": n_channels, "ROWS": self.rows, "POSITIONS": self.positions}
        return {**blocks, "UNIT": unit, "PRECISION": matrix_precision(dtype)}


def fits(x: Tensor) -> bool:
    """Return whether a tile holds all channels of ``x``, (B, channels, L)."""
    return x.shape[1] <= CHANNELS[-1]


def padded(n_channels: int) -> int:
    """Return the number of channels of a tile that holds ``n_channels``."""
    return next(channels for channels in CHANNELS if n_channels <= channels)


def unit_of(x: Tensor) -> int:
    """Return 8 if the length is divisible by 8, otherwise 1.

    Triton itself recognizes divisibility by 16 only. Kernels receive the length in this unit.
    """
    return _UNIT if x.shape[-1] % _UNIT == 0 else 1


def length_argument(x: Tensor, widest: int) -> dict[str, int]:
    """Return the argument ``length`` of tensors with the batch and length of ``x`` and up to ``widest`` channels.

    Raises:
        ValueError: offsets within a batch element exceed 32 bits.
    """
    if widest * x.shape[-1] >= 2**31:
        raise ValueError(f"{widest} channels of {x.shape[-1]} samples have more than 2³¹ elements per batch element")
    return {"length": x.shape[-1] // unit_of(x)}


def same_dtype(x: Tensor, *parameters: Tensor) -> list[Tensor]:
    """Return the parameters in the dtype of ``x`` if all have it, otherwise in float32. Kernels round them to it."""
    dtype = x.dtype if all(parameter.dtype == x.dtype for parameter in parameters) else torch.float32
    return [parameter.to(dtype) for parameter in parameters]


def split(gradients: Tensor, *parameters: Tensor) -> list[Tensor | None]:
    """Return the gradient of each parameter from one vector of all gradients, or None if the vector is empty."""
    if not gradients.shape[0]:
        return [None] * len(parameters)
    parts = gradients.split([parameter.numel() for parameter in parameters])
    return [part.view_as(parameter) for part, parameter in zip(parts, parameters, strict=True)]


def dtypes() -> Iterator[tuple[str, str]]:
    """Yield the Triton types of features and parameters."""
    yield from ((x, parameters) for x in FLOATS for parameters in dict.fromkeys(("*fp32", x)))


def every_form(
    kernel: Any, tiles: dict[str, dict[int, Tile]], features: str, parameters: str, sums: str, scalars: dict[str, str]
) -> Iterator[Launch]:
    """Yield every form of a kernel; ``features``, ``parameters`` and float32 ``sums`` are names of tensors."""
    for (x, weight), unit in itertools.product(dtypes(), (1, _UNIT)):
        names = {**dict.fromkeys(features.split(), x), **dict.fromkeys(parameters.split(), weight)}
        types = {**pointers(**names, **dict.fromkeys(sums.split(), "*fp32")), "length": "i32", **scalars}
        for n_channels, tile in tiles[x].items():
            yield tile.form(kernel, types, x, n_channels, unit)


@triton.jit
def gelu(z):
    """Return the exact GELU, z Φ(z)."""
    return z * _normal_distribution(z)


@triton.jit
def gelu_derivative(z):
    """Return Φ(z) + z exp(-z²/2) / √(2π)."""
    return _normal_distribution(z) + z * 0.3989422804014327 * tl.exp(-0.5 * z * z)


@triton.jit
def _normal_distribution(z):
    return 0.5 * (1 + tl.erf(z * 0.7071067811865476))


@triton.jit
def load_weight(ptr, rows, columns, n_rows, n_columns, dtype: tl.constexpr):
    """Load a zero-padded block of a contiguous matrix (n_rows, n_columns) and round it to ``dtype``."""
    mask = (rows < n_rows)[:, None] & (columns < n_columns)[None, :]
    return tl.load(ptr + rows[:, None] * n_columns + columns[None, :], mask, other=0.0).to(dtype)


@triton.jit
def load_bias(ptr, rows, n_rows):
    """Load a zero-padded column of float32 numbers."""
    return tl.load(ptr + rows, rows < n_rows, other=0.0).to(tl.float32)[:, None]


@triton.jit
def moments(x, channel_mask, position_mask, epsilon, n_channels):
    """Return mean and 1 / √(variance + epsilon) over the channels of a zero-padded tile, (POSITIONS,) each.

    The second is zero at positions outside of the signal, so that these add nothing to sums.
    """
    values = x.to(tl.float32)
    mean = tl.sum(values, 0) / n_channels
    centered = tl.where(channel_mask[:, None], values - mean[None, :], 0.0)
    scale = tl.rsqrt(tl.sum(centered * centered, 0) / n_channels + epsilon)
    return mean, tl.where(position_mask, scale, 0.0)


@triton.jit
def norm_parameters(weight_ptr, offset_ptr, channels, n_channels, layer):
    """Return weight and offset per channel, float32 (CHANNELS, 1); ``layer`` is 1 for the layer norm, 0 for the scalar."""
    mask = channels < n_channels
    weight = tl.load(weight_ptr + channels * layer, mask, other=0.0).to(tl.float32)
    return weight[:, None], tl.load(offset_ptr + channels * layer, mask, other=0.0).to(tl.float32)[:, None]


@triton.jit
def normalize(x, mean, scale, weight_ptr, offset_ptr, channels, n_channels, layer):
    """Return weight · x̂ + offset in the layer norm, gain · (x̂ + shift · scale) in the scalar norm, in float32."""
    weight, offset = norm_parameters(weight_ptr, offset_ptr, channels, n_channels, layer)
    offset_factor = tl.where(layer != 0, 1.0, tl.load(weight_ptr).to(tl.float32) * scale)
    normalized = (x.to(tl.float32) - mean[None, :]) * scale[None, :]
    return weight * normalized + offset * offset_factor[None, :]
