"""Values that depend only on the parameters of a module, computed once while the module is frozen."""

import contextlib
from collections.abc import Callable, Hashable, Iterator
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Keep values that depend only on parameters, such as convolution kernels, inside of this context.

    Outside of it every forward pass computes them. Contexts may be nested, and modules without such values are allowed.
    Nothing is kept in training mode, while gradients are recorded, or under compilation.

    Assignments of parameters, ``load_state_dict``, ``.to()``, ``.train()``, an optimizer step and other in-place
    operations inside of the context drop the values that depend on them. Writes through ``parameter.data`` do not, so
    do them outside.

    Example:
        >>> with torch.no_grad(), frozen(model):
        ...     for timestep in timesteps:
        ...         prediction = model(sample, timestep).sample
    """
    caches = [part.cache for part in module.modules() if isinstance(part, Cached)]
    for cache in caches:
        cache.open()
    try:
        yield
    finally:
        for cache in caches:
            cache.close()


def kept_values(module: nn.Module) -> list[Any]:
    """Return the values that a frozen module keeps, for example to keep their memory for a CUDA graph."""
    return [part.cache.values() for part in module.modules() if isinstance(part, Cached)]


def drop_values(module: nn.Module) -> None:
    """Drop the values that a frozen module keeps, so that the next forward pass computes them."""
    for part in module.modules():
        if isinstance(part, Cached):
            part.cache.clear()


class ParameterCache:
    """Cache of values that depend on the parameters of one module; it keeps values only while it is open.

    Version counters tell whether a tensor was written to since a value was computed. They are on the host, so a lookup
    does not wait for the device.
    """

    def __init__(self) -> None:
        self._depth = 0
        self._entries: dict[str, tuple[Hashable, list[tuple[int, int]], Any]] = {}

    def open(self) -> None:
        """Begin to keep values; the calls of ``open`` and ``close`` may be nested."""
        self._depth += 1

    def close(self) -> None:
        """Drop all values if this is the last call of ``close``."""
        self._depth -= 1
        if self._depth == 0:
            self.clear()

    def clear(self) -> None:
        """Drop all values."""
        self._entries.clear()

    def values(self) -> list[Any]:
        """Return all values."""
        return [value for _, _, value in self._entries.values()]

    def get(self, module: nn.Module, name: str, key: Hashable, compute: Callable[[], T]) -> T:
        """Return ``compute()``, or the value that an earlier call computed.

        Args:
            module: owner of the parameters and buffers.
            name: name of the value; the cache keeps one value per name.
            key: everything except the tensors of ``module`` on which the value depends.
            compute: function of the tensors of ``module`` and of ``key``.
        """
        if self._depth == 0 or module.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return compute()
        versions = [_version(tensor) for tensor in chain(module.parameters(), module.buffers())]
        entry = self._entries.get(name)
        if entry is None or entry[:2] != (key, versions):
            entry = (key, versions, compute())
            self._entries[name] = entry
        return entry[2]

    def __reduce__(self) -> tuple[type, tuple]:
        """Copy and pickle a module without the cached values."""
        return ParameterCache, ()


class Cached(nn.Module):
    """Module with a cache, see :func:`frozen`."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = ParameterCache()

    def train(self, mode: bool = True) -> "Cached":
        """Set the mode and drop the cached values."""
        self.cache.clear()
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        self.cache.clear()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, *arguments: Any, **options: Any) -> None:
        self.cache.clear()
        super()._load_from_state_dict(*arguments, **options)


def _version(tensor: Tensor) -> tuple[int, int]:
    """Return the identity of a tensor and the number of in-place operations on it."""
    return id(tensor), 0 if tensor.is_inference() else tensor._version
