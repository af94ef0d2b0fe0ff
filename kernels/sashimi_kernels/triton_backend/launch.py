"""Starting Triton kernels, and the description of every form in which they may be started."""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

_POINTERS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
    torch.int32: "*i32",
    torch.bool: "*i1",
}
_recordings: list[list["Launch"]] = []


class Launch(NamedTuple):
    """One compiled form of a Triton kernel: what ahead-of-time compilation needs to know.

    Args:
        kernel: the function decorated with ``triton.jit``.
        signature: Triton type of every argument that is not a constant: "*fp32", "i32", "fp32", …
        constants: value of every ``tl.constexpr`` argument.
        num_warps, num_stages: launch options.
        matrix: the design wants its products on matrix units (``mma.sync``, ``wgmma``, ``mfma``).
    """

    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int
    matrix: bool

    def form(self) -> str:
        """One line that names the kernel and everything it is compiled for."""
        arguments = ", ".join(f"{name}: {type}" for name, type in sorted(self.signature.items()))
        constants = ", ".join(f"{name}={value}" for name, value in sorted(self.constants.items()))
        options = f"num_warps={self.num_warps}, num_stages={self.num_stages}"
        return f"{self.kernel.__name__}({arguments}; {constants}; {options})"


def launch(
    kernel: Any,
    grid: tuple[int, ...],
    arguments: dict[str, Any],
    constants: dict[str, Any],
    num_warps: int = 4,
    num_stages: int = 2,
) -> None:
    """Start ``kernel`` on ``grid``; a grid with an empty axis has nothing to do.

    It runs on the device of its tensors. An argument that is None is a constant.
    """
    if 0 in grid:
        return
    if _recordings:
        started = _started(kernel, arguments, constants, num_warps, num_stages)
        for recording in _recordings:
            recording.append(started)
    # Triton starts kernels on the current device, which need not be that of the tensors.
    with torch.cuda.device_of(next(value for value in arguments.values() if isinstance(value, Tensor))):
        kernel[grid](**arguments, **constants, num_warps=num_warps, num_stages=num_stages)


@contextlib.contextmanager
def recording() -> Iterator[list[Launch]]:
    """Collects every launch made inside, with the types of its actual arguments; ``matrix`` is not known here."""
    launches: list[Launch] = []
    _recordings.append(launches)
    try:
        yield launches
    finally:
        _recordings.pop()


def _started(
    kernel: Any, arguments: dict[str, Any], constants: dict[str, Any], num_warps: int, num_stages: int
) -> Launch:
    absent = {name: None for name, value in arguments.items() if value is None}
    signature = {name: _triton_type(value) for name, value in arguments.items() if value is not None}
    return Launch(kernel, signature, {**constants, **absent}, num_warps, num_stages, matrix=False)


def _triton_type(value: Any) -> str:
    """The type under which Triton compiles an argument, apart from what it notices about its value."""
    if isinstance(value, Tensor):
        return _POINTERS[value.dtype]
    if isinstance(value, bool):
        return "u1"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    return "fp32"
