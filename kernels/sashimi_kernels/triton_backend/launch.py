"""Launches of Triton kernels, and descriptions of the forms in which kernels are compiled."""

import contextlib
from collections.abc import Callable, Iterator
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
_observers: list[Callable[["Launch", list[Tensor]], None]] = []


class Launch(NamedTuple):
    """One compiled form of a Triton kernel: the input of ahead-of-time compilation.

    Args:
        kernel: function decorated with ``triton.jit``.
        signature: Triton type of every non-constant argument: "*fp32", "i32", "fp32", …
        constants: value of every ``tl.constexpr`` argument.
        num_warps, num_stages: launch options.
        matrix: the design requires products on matrix units (``mma.sync``, ``wgmma``, ``mfma``).
        targets: keys of :data:`sashimi_kernels.hardware.HARDWARE` on which the form is launched; empty for all.
    """

    kernel: Any
    signature: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int
    matrix: bool
    targets: tuple[str, ...] = ()

    def form(self) -> str:
        """Return one line that identifies the compiled form."""
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
    """Launch ``kernel`` on ``grid``, on the device of its tensors. Do nothing if an axis of the grid is 0.

    Tensors on the device "meta" have no values: their launch is only reported to observers.

    Args:
        kernel: function decorated with ``triton.jit``.
        grid: number of programs along each axis.
        arguments: tensors and numbers by name. None becomes a constant of the compiled form.
        constants: value of every ``tl.constexpr`` argument by name.
        num_warps: warps per program.
        num_stages: pipeline stages of loops.
    """
    if 0 in grid:
        return
    tensors = [value for value in arguments.values() if isinstance(value, Tensor)]
    if _observers:
        launched = _launch_of(kernel, arguments, constants, num_warps, num_stages)
        for observer in _observers:
            observer(launched, tensors)
    if tensors[0].device.type == "meta":
        return
    # Triton launches kernels on the current device, which may differ from that of the tensors.
    with torch.cuda.device_of(tensors[0]):
        kernel[grid](**arguments, **constants, num_warps=num_warps, num_stages=num_stages)


@contextlib.contextmanager
def observing(observer: Callable[[Launch, list[Tensor]], None]) -> Iterator[None]:
    """Call ``observer`` before every launch inside this context, with its form and its tensors.

    The form has the types of the actual arguments; its ``matrix`` is always False.
    """
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


@contextlib.contextmanager
def recording() -> Iterator[list[Launch]]:
    """Record the form of every launch inside this context, see :func:`observing`."""
    launches: list[Launch] = []
    with observing(lambda launched, tensors: launches.append(launched)):
        yield launches


def _launch_of(
    kernel: Any, arguments: dict[str, Any], constants: dict[str, Any], num_warps: int, num_stages: int
) -> Launch:
    absent = {name: None for name, value in arguments.items() if value is None}
    signature = {name: _triton_type(value) for name, value in arguments.items() if value is not None}
    return Launch(kernel, signature, {**constants, **absent}, num_warps, num_stages, matrix=False)


def _triton_type(value: Any) -> str:
    """Return the type under which Triton compiles an argument, without specialization for its value."""
    if isinstance(value, Tensor):
        return _POINTERS[value.dtype]
    if isinstance(value, bool):
        return "u1"
    if isinstance(value, int):
        return "i32" if -(2**31) <= value < 2**31 else "i64"
    return "fp32"
