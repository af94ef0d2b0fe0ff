"""Dictionaries of kernel arguments: of their values for a launch, or of their Triton types for ``launches()``."""

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

from sashimi_kernels.triton_backend.launch import Launch

# Types of inputs and outputs. Kernels compute in float32.
FLOATS = ("*fp32", "*fp16", "*bf16")
_AXES = ("batch", "channel", "position")
# Elements of 16 bytes in half precision, the widest access of a thread.
MULTIPLES = (1, 8)


def pointers(**values: Any) -> dict[str, Any]:
    """Return the arguments ``{name}_ptr``. Values are tensors or Triton types, or None for an absent tensor."""
    return {f"{name}_ptr": value for name, value in values.items()}


def strides(name: str, x: Tensor) -> dict[str, int]:
    """Return the arguments ``{name}_{batch,channel,position}_stride`` of a tensor (B, H, L).

    Raises:
        ValueError: offsets within a batch element exceed 32 bits.
    """
    reach = sum(stride * (size - 1) for stride, size in zip(x.stride()[1:], x.shape[1:], strict=True))
    if reach >= 2**31:
        raise ValueError(f"a tensor of shape {tuple(x.shape)} has more than 2³¹ elements per batch element")
    return {f"{name}_{axis}_stride": stride for axis, stride in zip(_AXES, x.stride(), strict=True)}


def stride_types(*names: str) -> dict[str, str]:
    """Return the types of the arguments of :func:`strides` for each of ``names``."""
    return {f"{name}_{axis}_stride": "i32" for name in names for axis in _AXES}


def common_multiple(*tensors: Tensor) -> dict[str, int]:
    """Return the constant ``MULTIPLE``, by which the length and all strides of tensors (B, H, L) are divisible.

    It is 8 if samples are adjacent in memory and the length, batch stride and channel stride of every tensor are
    multiples of 8, otherwise 1. Triton itself only looks for multiples of 16, which a length of 1,000 is not.
    """
    *_, length = tensors[0].shape
    adjacent = all(x.stride(2) == 1 for x in tensors)
    wide = adjacent and all(size % 8 == 0 for x in tensors for size in (length, x.stride(0), x.stride(1)))
    return {"MULTIPLE": 8 if wide else 1}


@functools.cache
def is_rdna(device: torch.device) -> bool:
    """Return whether the device is an AMD GPU with 32 lanes per wave."""
    if device.type != "cuda" or torch.version.hip is None:
        return False
    return torch.cuda.get_device_properties(device).warp_size == 32


@functools.cache
def gpu_architecture(device: torch.device) -> str:
    """Return "ampere" (also Ada), "hopper", "blackwell", "cdna" or "rdna"; tiles are chosen by it.

    Tensors without data and the interpreter have the tiles of "hopper".
    """
    if device.type != "cuda":
        return "hopper"
    if torch.version.hip is not None:
        return "rdna" if is_rdna(device) else "cdna"
    capability = torch.cuda.get_device_capability(device)
    return "blackwell" if capability >= (10, 0) else "hopper" if capability >= (9, 0) else "ampere"


def is_single(dtype: torch.dtype | str) -> bool:
    """Return whether a Triton or PyTorch type is float32."""
    return dtype in (torch.float32, "*fp32")


def matrix_precision(dtype: torch.dtype | str) -> str:
    """Return the ``input_precision`` of float32 products for signals of this Triton or PyTorch type."""
    if knobs.runtime.interpret:
        return "ieee"  # the only precision of the interpreter, that of float32
    return "bf16x6" if is_single(dtype) else "bf16x3"


@triton.jit
def multiple(value, MULTIPLE: tl.constexpr):
    """Return ``value``, a multiple of the constant ``MULTIPLE``, in a form from which the compiler can see this."""
    return value // MULTIPLE * MULTIPLE


def form(kernel: Any, types: dict[str, str | None], constants: dict[str, Any], num_warps: int) -> Launch:
    """Return one form of a kernel without matrix products. A pointer of type None becomes a constant."""
    signature = {name: type for name, type in types.items() if type is not None}
    absent = dict.fromkeys(types.keys() - signature.keys())
    return Launch(kernel, signature, {**absent, **constants}, num_warps, num_stages=2, matrix=False)
