"""Dictionaries of kernel arguments: of their values for a launch, or of their Triton types for ``launches()``."""

from typing import Any

from torch import Tensor

from sashimi_kernels.triton_backend.launch import Launch

# Types of inputs and outputs. Kernels compute in float32.
FLOATS = ("*fp32", "*fp16", "*bf16")
_AXES = ("batch", "channel", "position")


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


def form(kernel: Any, types: dict[str, str | None], constants: dict[str, Any], num_warps: int) -> Launch:
    """Return one form of a kernel without matrix products. A pointer of type None becomes a constant."""
    signature = {name: type for name, type in types.items() if type is not None}
    absent = dict.fromkeys(types.keys() - signature.keys())
    return Launch(kernel, signature, {**absent, **constants}, num_warps, num_stages=2, matrix=False)
