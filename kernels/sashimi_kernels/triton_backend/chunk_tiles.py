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
from triton import knobs

from sashimi_kernels.triton_backend.launch import Launch

# States of a direction are padded with zeros to one of these numbers of columns.
COLUMNS = (64, 128)
_UNIT = 8


def matrix_precision(dtype: torch.dtype | str) -> str:
    """Return the ``input_precision`` of float32 products for signals of this Triton or PyTorch type."""
    if knobs.runtime.interpret:
        return "ieee"  # the only precision of the interpreter, that of float32
    return "bf16x6" if dtype in (torch.float32, "*fp32") else "bf16x3"


def padded_columns(n: int) -> int:
    """Return the number of columns of a direction with n real states.

    Raises:
        ValueError: there are too many states.
    """
    for columns in COLUMNS:
        if n <= columns:
            return columns
    raise ValueError(
        f"the triton backend of chunked_convolution holds up to {COLUMNS[-1] // 2} complex states, not {n // 2}: use "
        "backend='torch'"
    )


def unit_of(*signals: Tensor) -> int:
    """Return 8 if the length and all strides are divisible by 8, otherwise 1.

    Triton itself recognizes divisibility by 16 only. Kernels receive the length and the strides in this unit.
    """
    sizes = [x for signal in signals for x in (signal.shape[-1], *signal.stride()[:-1])]
    return _UNIT if all(size % _UNIT == 0 for size in sizes) else 1


def in_units(unit: int, **signals: Tensor) -> dict[str, int]:
    """Return ``length``, ``{name}_batch_stride`` and ``{name}_feature_stride`` of signals (B, H, L) in this unit."""
    strides = {
        f"{name}_{axis}_stride": signal.stride(dimension) // unit
        for name, signal in signals.items()
        for dimension, axis in enumerate(("batch", "feature"))
    }
    return {"length": next(iter(signals.values())).shape[-1] // unit, **strides}


def matrix_form(
    kernel: Any,
    tensors: dict[str, str],
    integers: tuple[str, ...],
    constants: dict[str, Any],
    num_warps: int,
    num_stages: int,
) -> Launch:
    """Return one form of a kernel with matrix products from its pointer types and the names of its integers."""
    signature = {**tensors, **dict.fromkeys(integers, "i32")}
    return Launch(kernel, signature, constants, num_warps, num_stages, matrix=True)


@triton.jit
def load_samples(signal_ptr, row_offsets, positions, left, row_mask):
    """Load a tile (rows, positions), zero outside of ``row_mask`` and after the ``left`` elements of a row."""
    mask = (positions[None, :] < left[:, None]) & row_mask[:, None]
    return tl.load(signal_ptr + (row_offsets[:, None] + positions[None, :]), mask=mask, other=0.0)
