"""Cache of a value that depends only on the parameters of a module."""

from collections.abc import Hashable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


class ParameterCache:
    """Cache of one value, valid while the parameters and buffers of a module are unchanged.

    The parameter values are compared, not their version counters: optimizers and moving averages write through
    ``parameter.data``, which does not change the counters. The comparison takes less than a thousandth of the time in
    which a convolution kernel is computed.

    Nothing is cached in training mode, while gradients are recorded, or under compilation.
    """

    _key: Hashable = None
    _snapshot: Tensor | None = None
    _value: Any = None

    def lookup(self, module: nn.Module, key: Hashable) -> Any:
        """Return the cached value, or None if there is none or if ``key`` or a tensor of ``module`` has changed.

        Args:
            module: owner of the parameters; all its tensors have the same dtype and device.
            key: everything else that the value depends on.
        """
        if not _caching(module) or self._snapshot is None or key != self._key:
            return None
        stored, current = self._snapshot, _flat_tensors(module)
        same_type = (stored.dtype, stored.device) == (current.dtype, current.device)
        return self._value if same_type and torch.equal(stored, current) else None

    def store(self, module: nn.Module, key: Hashable, value: Any) -> None:
        """Replace the cached value; see :meth:`lookup` for ``module`` and ``key``."""
        if _caching(module):
            self._key, self._snapshot, self._value = key, _flat_tensors(module), value

    def clear(self) -> None:
        """Drop the cached value and free its memory."""
        self._key = self._snapshot = self._value = None


def _caching(module: nn.Module) -> bool:
    return not (module.training or torch.is_grad_enabled() or torch.compiler.is_compiling())


def _flat_tensors(module: nn.Module) -> Tensor:
    """Return a copy of all parameters and buffers, concatenated."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in chain(module.parameters(), module.buffers())])
