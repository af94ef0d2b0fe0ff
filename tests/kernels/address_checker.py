"""A check of the addresses that Triton kernels access, in Triton's interpreter.

Inside ``checked_addresses()`` every active lane of every load and store of every launch is looked at. In a launch

- all lanes of one access lie on elements of one tensor of the launch, and are as wide as an element;
- no element is stored by two programs, or twice by one store;
- no element that one program stores is loaded by another one, because programs run in any order.
"""

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
from torch import Tensor
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle


class AddressError(AssertionError):
    """A kernel breaks one of the rules of this module."""


class _Launch:
    """The accesses of one launch."""

    def __init__(self, kernel: str, tensors: dict[str, Tensor]) -> None:
        self.kernel = kernel
        self.elements = {name: _elements(x) for name, x in tensors.items() if x.numel()}
        self.sizes = {name: x.element_size() for name, x in tensors.items()}
        self.loads: dict[tuple[int, ...], list[np.ndarray]] = {}
        self.stores: dict[tuple[int, ...], list[np.ndarray]] = {}

    def access(self, kind: str, program: tuple[int, ...], pointers: TensorHandle, mask: TensorHandle) -> None:
        """Check one access of one program and keep its addresses."""
        active = pointers.data[np.broadcast_to(mask.data, pointers.data.shape).astype(bool)].astype(np.uint64)
        size = pointers.get_element_ty().primitive_bitwidth // 8
        homes = (name for name in self.elements if self.sizes[name] == max(size, 1))
        if len(active) and not any(np.isin(active, self.elements[name]).all() for name in homes):
            raise AddressError(f"{self.kernel}: program {program} has a {kind} outside of a tensor")
        addresses = np.unique(active)
        if kind == "store" and len(addresses) < active.size:
            raise AddressError(f"{self.kernel}: program {program} stores an element twice at once")
        {"load": self.loads, "store": self.stores}[kind].setdefault(program, []).append(addresses)

    def finish(self) -> None:
        """Check the accesses of different programs against each other."""
        stored = {program: np.unique(np.concatenate(parts)) for program, parts in self.stores.items()}
        if not stored:
            return
        addresses = np.concatenate(list(stored.values()))
        writers = np.repeat(np.arange(len(stored)), [len(part) for part in stored.values()])
        order = np.argsort(addresses, kind="stable")
        addresses, writers = addresses[order], writers[order]
        if (addresses[1:] == addresses[:-1]).any():
            raise AddressError(f"{self.kernel}: two programs store the same element")
        numbers = {program: number for number, program in enumerate(stored)}
        for program, parts in self.loads.items():
            loaded = np.unique(np.concatenate(parts))
            places = np.searchsorted(addresses, loaded).clip(max=len(addresses) - 1)
            foreign = (addresses[places] == loaded) & (writers[places] != numbers.get(program, -1))
            if foreign.any():
                raise AddressError(f"{self.kernel}: program {program} loads an element that another one stores")


@contextlib.contextmanager
def checked_addresses() -> Iterator[list[str]]:
    """Check every launch in this context and return the names of the kernels in the order of their launches.

    Raises:
        AddressError: at the end of a launch, or (wrapped by the interpreter) at the access itself.
    """
    kernels: list[str] = []
    current: list[_Launch] = []
    call, load, store = (
        GridExecutor.__call__,
        InterpreterBuilder.create_masked_load,
        InterpreterBuilder.create_masked_store,
    )

    def checked_call(self: GridExecutor, *arguments: Any, **named: Any) -> None:
        values = {**dict(zip(self.arg_names, arguments, strict=False)), **named}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        kernels.append(self.fn.__name__)
        current.append(_Launch(self.fn.__name__, tensors))
        try:
            call(self, *arguments, **named)
            current[-1].finish()
        finally:
            current.pop()

    def checked_load(self: InterpreterBuilder, pointers: TensorHandle, mask: TensorHandle, *rest: Any) -> TensorHandle:
        current[-1].access("load", self.grid_idx, pointers, mask)
        return load(self, pointers, mask, *rest)

    def checked_store(
        self: InterpreterBuilder, pointers: TensorHandle, value: TensorHandle, mask: TensorHandle, *rest: Any
    ) -> None:
        current[-1].access("store", self.grid_idx, pointers, mask)
        return store(self, pointers, value, mask, *rest)

    with (
        mock.patch.object(GridExecutor, "__call__", checked_call),
        mock.patch.object(InterpreterBuilder, "create_masked_load", checked_load),
        mock.patch.object(InterpreterBuilder, "create_masked_store", checked_store),
    ):
        yield kernels


def _elements(x: Tensor) -> np.ndarray:
    """Return the addresses of all elements of a tensor."""
    addresses = np.array([x.data_ptr()], dtype=np.uint64)
    for size, stride in zip(x.shape, x.stride(), strict=True):
        steps = (np.arange(size) * stride * x.element_size()).astype(np.uint64)
        addresses = (addresses[:, None] + steps).ravel()
    return addresses
