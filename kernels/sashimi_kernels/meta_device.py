"""The device "meta" with the behavior of a CUDA device, where PyTorch treats the two differently.

- ``torch.autocast("meta", dtype)`` works. It casts the inputs of the operations of CUDA's lists, and casts each weight
  once, as on CUDA.
- Weight normalization is one kernel, as on CUDA. For other devices, PyTorch composes it of several operations.
- Tensors that are created from Python numbers are reported, because on CUDA they are copied from the CPU.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

_LOW_PRECISION = {
    *("linear", "matmul", "__matmul__", "__rmatmul__", "mm", "mv", "bmm", "einsum", "chain_matmul", "multi_dot"),
    *("addmm", "addmv", "addr", "addbmm", "baddbmm", "scaled_dot_product_attention", "prelu"),
    *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
}
"""Functions whose inputs autocast casts to the lower precision."""

_FLOAT32 = {
    *("exp", "expm1", "log", "log10", "log1p", "log2", "pow", "__pow__", "__rpow__", "reciprocal", "rsqrt", "tan"),
    *("acos", "asin", "cosh", "sinh", "erfinv", "softplus", "layer_norm", "group_norm", "norm", "cosine_similarity"),
    *("mse_loss", "l1_loss", "smooth_l1_loss", "nll_loss", "cross_entropy", "binary_cross_entropy_with_logits"),
}
"""Functions whose inputs autocast casts to float32."""


@contextlib.contextmanager
def meta_as_cuda(on_transfer: Callable[[Tensor], None]) -> Iterator[None]:
    """Let the device "meta" behave like a CUDA device inside this context.

    Args:
        on_transfer: called with every tensor on "meta" that is created from Python numbers.
    """
    mode = _MetaAsCuda(on_transfer)
    # The state of autocast on the CPU stands for that on "meta", which PyTorch does not have.
    available, enabled, dtype = torch.amp.is_autocast_available, torch.is_autocast_enabled, torch.get_autocast_dtype

    class Autocast(torch.autocast):
        def __init__(self, device_type: str, *args: Any, **kwargs: Any) -> None:
            super().__init__(_with_state(device_type), *args, **kwargs)

        def __exit__(self, *error: Any) -> Any:
            result = super().__exit__(*error)
            if not enabled("cpu"):
                mode.forget_casts()
            return result

    with contextlib.ExitStack() as stack:
        stack.enter_context(_replaced(torch, "autocast", Autocast))
        stack.enter_context(_replaced(torch.amp, "is_autocast_available", lambda type: available(_with_state(type))))
        stack.enter_context(_replaced(torch, "is_autocast_enabled", lambda type="cuda": enabled(_with_state(type))))
        stack.enter_context(_replaced(torch, "get_autocast_dtype", lambda type: dtype(_with_state(type))))
        stack.enter_context(mode)
        yield


class _MetaAsCuda(TorchFunctionMode):
    """Changes calls of PyTorch's functions; autograd and dispatch modes see the changed calls."""

    def __init__(self, on_transfer: Callable[[Tensor], None]) -> None:
        super().__init__()
        self.on_transfer = on_transfer
        self._casts: dict[int, tuple[Tensor, Tensor]] = {}  # weights, which are kept alive, and their casts

    def forget_casts(self) -> None:
        """Drop the casts of weights."""
        self._casts.clear()

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name == "_weight_norm" and args[0].device.type == "meta":
            return torch.ops.aten._weight_norm_interface(*args, **kwargs)[0]
        if torch.is_autocast_enabled("cpu") and "out" not in kwargs:
            dtype = torch.get_autocast_dtype("cpu") if name in _LOW_PRECISION else None
            dtype = torch.float32 if name in _FLOAT32 else dtype
            if dtype is not None:
                args, kwargs = tree_map(lambda value: self._cast(value, dtype), (args, kwargs))
        result = func(*args, **kwargs)
        if name in ("tensor", "as_tensor", "new_tensor") and result.device.type == "meta":
            source = args[name == "new_tensor"] if len(args) > (name == "new_tensor") else kwargs.get("data")
            if not isinstance(source, Tensor):
                self.on_transfer(result)
        return result

    def _cast(self, x: Any, dtype: torch.dtype) -> Any:
        """Return ``x`` in ``dtype`` if autocast would cast it; float32 weights are cast once."""
        eligible = isinstance(x, Tensor) and x.device.type == "meta" and x.is_floating_point()
        if not eligible or x.dtype in (dtype, torch.float64):
            return x
        weight = x.dtype == torch.float32 and x.requires_grad and x.is_leaf and x._base is None
        if not weight or not torch.is_autocast_cache_enabled():
            return x.to(dtype)
        if id(x) not in self._casts:
            self._casts[id(x)] = x, x.to(dtype)
        return self._casts[id(x)][1]


def _with_state(device_type: str) -> str:
    """Return the device type that has the state of autocast on ``device_type``."""
    return "cpu" if device_type == "meta" else device_type


@contextlib.contextmanager
def _replaced(module: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, original)
