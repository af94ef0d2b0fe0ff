"""A recording of PyTorch operations, which takes the place of a CUDA graph on a CPU."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only


class Operations(TorchDispatchMode):
    """Recording of the operations of a step that repeats them on the same memory, like a CUDA graph."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable[..., Any], Any, Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        assert function is not torch.ops.aten._local_scalar_dense.default, "Python must not wait for a number"
        arguments = _aliases((args, kwargs or {}))
        actual = function(*args, **(kwargs or {}))
        self.calls.append((function, arguments, _aliases(actual)))
        return actual

    def repeat(self) -> None:
        for function, arguments, actual in self.calls:
            args, kwargs = _aliases(arguments)
            for before, now in zip(tree_leaves(actual), tree_leaves(function(*args, **kwargs)), strict=True):
                if isinstance(before, Tensor) and before.data_ptr() != now.data_ptr():  # neither a view nor in place
                    before.copy_(now)


def _aliases(values: Any) -> Any:
    """Return tensors on the same memory, because operations like ``unsqueeze_`` change the shape of their input."""
    return tree_map_only(Tensor, Tensor.detach, values)
