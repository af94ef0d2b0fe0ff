"""What the kernels of the linear maps share: tiles with all channels, GELU, the norm of a tile, arguments and forms.

A tile has all channels, padded to a power of two, of some positions. Half-precision products are exact and summed in
float32. Float32 products have the precision of :func:`matrix_precision`.

All accesses are 16 bytes wide: numbers of channels are multiples of 16, lengths are padded to multiples of 8, addresses
are multiples of 16. Tiles of this size would not fit the registers with an address for every element.
"""

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple, TypeAlias

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional as F

from sashimi_kernels.hardware import HARDWARE, RDNA
from sashimi_kernels.triton_backend.arguments import FLOATS, gpu_architecture, matrix_precision, pointers
from sashimi_kernels.triton_backend.launch import Launch, launch

# GPUs by the size of the tiles that fit their registers; "single" and "small single" are for float32 features.
TARGETS = {
    "hopper": ("cuda:90",),
    "blackwell": ("cuda:100",),
    "ampere": ("cuda:80", "cuda:86", "cuda:89"),
    "cdna": tuple(name for name in HARDWARE if name.startswith("hip") and name not in RDNA),
    "rdna": RDNA,
    "single": ("cuda:90", "cuda:100"),
    "small single": tuple(name for name in HARDWARE if name not in ("cuda:90", "cuda:100")),
}
_CHANNEL_MULTIPLE = 16
# Half-precision elements of 16 bytes; compilation assumes aligned arguments if a kernel has this constant.
ALIGNED = {"ALIGNED": 8}


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

    def constants(self, dtype: torch.dtype | str, n_channels: int) -> dict[str, Any]:
        """Return the constants of a kernel for this dtype and padded number of channels."""
        blocks = {"CHANNELS": n_channels, "ROWS": self.rows, "POSITIONS": self.positions}
        return {**blocks, **ALIGNED, "PRECISION": matrix_precision(dtype)}


Tiles: TypeAlias = dict[str, dict[int, Tile]]
"""The tiles of a kernel by GPU and padded number of channels."""


def fits(x: Tensor, n_others: int, *tiles: Tiles) -> bool:
    """Return whether tiles of all kernels hold all channels of ``x``, (B, channels, L), and accesses are wide.

    ``n_others`` is the size of the other axis of the weights.
    """
    wide = all(n_channels % _CHANNEL_MULTIPLE == 0 for n_channels in (x.shape[1], n_others))
    return wide and all(x.shape[1] <= max(of_kernel.get(gpu_of(x), ()), default=0) for of_kernel in tiles)


def padded(x: Tensor) -> Tensor:
    """Return ``x``, (B, channels, L), with copies of the last sample up to a length that is a multiple of 8.

    They are no zeros, which a norm with a small epsilon would scale up.
    """
    missing = -x.shape[-1] % ALIGNED["ALIGNED"]
    return F.pad(x, (0, missing), mode="replicate") if missing else x


def shortened(y: Tensor, x: Tensor) -> Tensor:
    """Return the first samples of ``y``, as many as ``x`` has."""
    # A slice of everything would be copied in the backward pass.
    return y if y.shape[-1] == x.shape[-1] else y[..., : x.shape[-1]]


def aligned(x: Tensor) -> Tensor:
    """Return ``x`` in contiguous memory at an address that is a multiple of 16."""
    x = x.contiguous()
    return x.clone() if x.storage_offset() * x.element_size() % 16 else x


def tile_of(tiles: Tiles, x: Tensor) -> Tile:
    """Return the smallest tile that holds all channels of ``x``, (B, channels, L)."""
    fitting = tiles[gpu_of(x)]
    return fitting[_n_channels(fitting, x)]


def run(kernel: Any, tiles: Tiles, grid: tuple[int, ...], arguments: dict[str, Any], x: Tensor) -> None:
    """Launch a kernel with tiles for the channels and the dtype of ``x``."""
    tile = tile_of(tiles, x)
    constants = tile.constants(x.dtype, _n_channels(tiles[gpu_of(x)], x))
    launch(kernel, grid, arguments, constants, tile.num_warps, tile.num_stages)


def length_argument(x: Tensor, widest: int) -> dict[str, int]:
    """Return the argument ``length`` of tensors with the batch and length of ``x`` and up to ``widest`` channels.

    Raises:
        ValueError: offsets within a batch element exceed 32 bits.
    """
    if widest * x.shape[-1] >= 2**31:
        raise ValueError(f"{widest} channels of {x.shape[-1]} samples have more than 2³¹ elements per batch element")
    return {"length": x.shape[-1]}


def same_dtype(x: Tensor, *parameters: Tensor) -> list[Tensor]:
    """Return the parameters in the dtype of ``x`` if all have it, otherwise in float32."""
    dtype = x.dtype if all(parameter.dtype == x.dtype for parameter in parameters) else torch.float32
    return [parameter.to(dtype) for parameter in parameters]


def kept_weights(keep: bool, x: Tensor, *weights: Tensor) -> Tensor:
    """Return memory for all weights in the dtype of ``x``, or none if they have this dtype or need not be kept."""
    needed = keep and weights[0].dtype != x.dtype
    return x.new_empty(sum(weight.numel() for weight in weights) if needed else 0)


def split(gradients: Tensor, *parameters: Tensor) -> list[Tensor | None]:
    """Return the gradient of each parameter from one vector of all gradients, or None if the vector is empty."""
    if not gradients.shape[0]:
        return [None] * len(parameters)
    parts = gradients.split([parameter.numel() for parameter in parameters])
    return [part.view_as(parameter) for part, parameter in zip(parts, parameters, strict=True)]


def dtypes() -> Iterator[tuple[str, str]]:
    """Yield the Triton types of features and parameters."""
    yield from ((x, parameters) for x in FLOATS for parameters in dict.fromkeys(("*fp32", x)))


def forms(
    kernel: Any, tiles: Tiles, names: tuple[str, str, str], integers: str, scalars: dict[str, str] | None = None
) -> Iterator[Launch]:
    """Yield every form of a kernel.

    Args:
        kernel: the kernel.
        tiles: its tiles.
        names: tensors in the dtype of the features, in the dtype of the parameters, and in float32.
        integers: integers except the length.
        scalars: types of other numbers.
    """
    features, parameters, sums = (name.split() for name in names)
    for (x, parameter), gpu in itertools.product(dtypes(), tiles):
        if is_single(gpu) != is_single(x):
            continue
        tensors = {**dict.fromkeys(features, x), **dict.fromkeys(parameters, parameter), **dict.fromkeys(sums, "*fp32")}
        numbers = {**dict.fromkeys([*integers.split(), "length"], "i32"), **(scalars or {})}
        for n_channels, tile in tiles[gpu].items():
            constants = tile.constants(x, n_channels)
            options = {"num_warps": tile.num_warps, "num_stages": tile.num_stages}
            yield Launch(
                kernel,
                {**pointers(**tensors), **numbers},
                constants,
                **options,
                matrix=True,
                targets=TARGETS[gpu],
            )


def is_single(x: str) -> bool:
    """Return whether a Triton type or a key of ``TARGETS`` is that of float32 features."""
    return x == "*fp32" or x.endswith("single")


def gpu_of(x: Tensor) -> str:
    """Return the key of ``TARGETS`` for ``x``. Float32 products need more registers than some GPUs have for a tile."""
    architecture = _architecture(x.device)
    if x.dtype != torch.float32:
        return architecture
    return "single" if architecture in ("hopper", "blackwell") else "small single"


# torch.compile calls the next function once and treats its result as a constant.
@torch.compiler.assume_constant_result
def _architecture(device: torch.device) -> str:
    return gpu_architecture(device)


def _n_channels(tiles: dict[int, Tile], x: Tensor) -> int:
    return min(n_channels for n_channels in tiles if x.shape[1] <= n_channels)


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
def keep_weight(weight_ptr, kept_ptr, n_elements):
    """Copy a weight for the backward pass, in another dtype; all programs of the launch share the work."""
    n_programs = tl.num_programs(0).to(tl.int64) * tl.num_programs(1) * tl.num_programs(2)
    program = (tl.program_id(2).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(
        0
    ) + tl.program_id(0)
    for start in range(program * 1024, n_elements, n_programs * 1024):
        offsets = start + tl.arange(0, 1024)
        weight = tl.load(weight_ptr + offsets, offsets < n_elements)
        tl.store(kept_ptr + offsets, weight.to(kept_ptr.dtype.element_ty), offsets < n_elements)


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
    """Return weight and offset per channel, float32 (CHANNELS, 1); ``layer`` is 1 in the layer norm, else 0."""
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


@triton.jit
def norm_gradients(dn, x, mean, scale, weight_ptr, offset_ptr, channels, n_channels, layer):
    """Return the gradient of x, and those of weight and offset per channel, summed over the positions of the tile.

    dn is zero for padded channels.
    """
    weight, _ = norm_parameters(weight_ptr, offset_ptr, channels, n_channels, layer)
    gain = tl.where(layer != 0, 1.0, tl.load(weight_ptr).to(tl.float32))
    shift = tl.where(layer != 0, 0.0, tl.load(offset_ptr).to(tl.float32))
    normalized = (x.to(tl.float32) - mean[None, :]) * scale[None, :]
    sums = tl.sum(dn * tl.where(layer != 0, 1.0, scale)[None, :], 1)
    dweight = tl.sum(dn * normalized, 1) + shift * sums
    dn *= weight
    mean_dn = tl.sum(dn, 0) / n_channels
    mean_product = tl.sum(dn * normalized, 0) / n_channels + shift * scale * mean_dn
    dx = (dn - mean_dn[None, :] - normalized * mean_product[None, :]) * scale[None, :]
    return dx, dweight, gain * sums
