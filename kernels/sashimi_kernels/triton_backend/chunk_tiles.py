"""What the kernels of the chunked convolution share: tiles of samples, precision of products, alignment, forms.

Precision: half-precision signals take one product with operands rounded to their dtype, summed in float32. Products of
float32 numbers split them into bfloat16 numbers, which have the exponent range of float32 and run at full speed on
every matrix unit: six products (relative error 2^-23) for float32 signals, three (2^-16) for the recurrence over the
chunks of a half-precision signal, whose errors accumulate.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sashimi_kernels.hardware import HARDWARE, RDNA
from sashimi_kernels.triton_backend.arguments import gpu_architecture
from sashimi_kernels.triton_backend.launch import Launch

# States of a direction are padded with zeros to a multiple of this number of columns.
COLUMNS = 64
# Divides lengths and strides of signals: 16 bytes in half precision, the widest access of a thread.
MULTIPLE = 8
# GPUs by the size of the tiles that fit their registers.
_AMPERE = ("cuda:80", "cuda:86", "cuda:89")
TARGETS = {
    "hopper": ("cuda:90", "cuda:100"),
    "ampere": _AMPERE,
    "cdna": tuple(name for name in HARDWARE if name.startswith("hip") and name not in RDNA),
    "rdna": RDNA,
}


def architecture(device: torch.device) -> str:
    """Return the key of ``TARGETS`` of a device."""
    name = gpu_architecture(device)
    return "hopper" if name == "blackwell" else name


def padded(x: Tensor, n: int, rows: bool = False) -> Tensor:
    """Pad each direction's n columns of (..., D·n) with zeros to a multiple of 64, also the rows if ``rows``.

    Tiles are then aligned and need no masks. The usual n = 64 needs no padding.
    """
    missing = -n % COLUMNS
    if missing == 0:
        return x
    wide = torch.nn.functional.pad(x.unflatten(-1, (x.shape[-1] // n, n)), (0, missing)).flatten(-2)
    return torch.nn.functional.pad(wide, (0, 0, 0, missing)) if rows else wide


def aligned(signal: Tensor) -> Tensor:
    """Return a signal (B, H, L) with adjacent samples, where those of a feature start at a multiple of 16 bytes.

    A copy costs less than narrow accesses, as the samples are read several times.
    """
    starts = (signal.storage_offset(), *signal.stride()[:-1])
    if signal.stride(-1) == 1 and all(start % MULTIPLE == 0 for start in starts):
        return signal
    return signal.clone(memory_format=torch.contiguous_format)


def signal_sizes(**signals: Tensor) -> dict[str, int]:
    """Return ``length``, ``{name}_batch_stride`` and ``{name}_feature_stride`` of signals (B, H, L)."""
    strides = {
        f"{name}_{axis}_stride": signal.stride(dimension)
        for name, signal in signals.items()
        for dimension, axis in enumerate(("batch", "feature"))
    }
    return {"length": next(iter(signals.values())).shape[-1], **strides}


def matrix_form(
    kernel: Any,
    tensors: dict[str, str | None],
    integers: tuple[str, ...],
    constants: dict[str, Any],
    options: dict[str, int],
    architectures: tuple[str, ...],
) -> Launch:
    """Return one form of a kernel with matrix products. A pointer of type None becomes a constant.

    Args:
        kernel: the kernel.
        tensors: types of the pointers.
        integers: names of the integers.
        constants: values of the constants.
        options: ``num_warps`` and ``num_stages``.
        architectures: keys of ``TARGETS`` on which the form is launched.
    """
    signature = {name: type for name, type in tensors.items() if type is not None}
    absent = dict.fromkeys(tensors.keys() - signature.keys())
    targets = tuple(target for name in architectures for target in TARGETS[name])
    signature |= dict.fromkeys(integers, "i32")
    return Launch(kernel, signature, {**constants, **absent}, **options, matrix=True, targets=targets)


@triton.jit
def load_samples(signal_ptr, row_offsets, positions, left, row_mask):
    """Load a tile (rows, positions), zero outside of ``row_mask`` and after the ``left`` elements of a row."""
    mask = (positions[None, :] < left[:, None]) & row_mask[:, None]
    return tl.load(signal_ptr + (row_offsets[:, None] + positions[None, :]), mask=mask, other=0.0)
