"""Count kernel launches, memory traffic and synchronizations of a CUDA program without a GPU.

    with torch.device("meta"):
        model, sample = SashimiDenoiser().eval(), torch.randn(16, 1, 16000)
    with Counter() as counts, torch.no_grad(), torch.autocast("meta", torch.bfloat16):
        model(sample, 0)
    print(counts.launches, counts.bytes, counts.synchronizations)

Tensors on the device "meta" have shapes and no values, so nothing is computed, also in a backward pass and in an
optimizer step. ``SASHIMI_KERNELS=triton`` selects the kernels of a GPU; their launches are counted, too.

- Launches are those of CUDA, see ``cuda_launches`` and, for weight normalization and autocast, ``meta_device``.
- Bytes: every operation and every Triton kernel reads each of its tensors once and writes each of its results once.
  This is a lower bound for operations of several kernels.
- A synchronization reads a value (``item``, ``tolist``, ``cpu``, ``bool``, ``torch.equal``). The values read are ones
  and True, because there are none. An operation whose result has as many elements as the values say raises an error.
- A transfer copies from the CPU to the device. It synchronizes unless it is pinned and non-blocking.
"""

import contextlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sashimi_kernels import meta_device
from sashimi_kernels.cuda_launches import distinct_bytes, launches, tensors_in
from sashimi_kernels.meta_device import meta_as_cuda

_NAMESPACE = "sashimi_kernels"
_FOREIGN = (
    *(str(Path(torch.__file__).parent), __file__, meta_device.__file__, contextlib.__file__),
    str(Path(__file__).parent / "triton_backend" / "launch.py"),
)
# In-place operations that do not read what they overwrite.
_OVERWRITES = {"copy_", "fill_", "zero_", "normal_", "uniform_", "random_", "bernoulli_", "exponential_"}


@dataclass
class Operation:
    """Sums over all calls of an operation or Triton kernel."""

    calls: int = 0
    launches: int = 0
    bytes: int = 0


@dataclass
class Counts:
    """Result of a :class:`Counter`.

    Args:
        operations: sums by name: "aten.add", "triton.gated_residual_kernel".
        lines: sums by the line of the innermost caller outside of PyTorch. In a backward pass, the name of the node of
            the graph follows: "sashimi_diffusion/training/step.py:69 in BmmBackward0".
        synchronizations: one text for each: "aten.equal at sashimi_diffusion/ssm/cache.py:34".
        transfers: one text for each copy from the CPU, also those that synchronize.
    """

    operations: dict[str, Operation] = field(default_factory=dict)
    lines: dict[str, Operation] = field(default_factory=dict)
    synchronizations: list[str] = field(default_factory=list)
    transfers: list[str] = field(default_factory=list)

    @property
    def launches(self) -> int:
        """Number of kernels."""
        return sum(operation.launches for operation in self.operations.values())

    @property
    def bytes(self) -> int:
        """Bytes read and written."""
        return sum(operation.bytes for operation in self.operations.values())

    def add(self, name: str, n_launches: int, n_bytes: int) -> None:
        """Add a call of the operation ``name``."""
        node = torch._C._current_autograd_node()
        line = _place() if node is None else f"{_place()} in {node.name()}"
        for sums, key in ((self.operations, name), (self.lines, line)):
            operation = sums.setdefault(key, Operation())
            operation.calls += 1
            operation.launches += n_launches
            operation.bytes += n_bytes


class Counter:
    """Context that counts what the operations on "meta" tensors inside it would do on CUDA; it returns the counts."""

    def __init__(self) -> None:
        self._counts = Counts()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> Counts:
        def on_transfer(tensor: Tensor) -> None:
            self._counts.transfers.append(f"{tuple(tensor.shape)} from Python numbers at {_place()}")

        self._stack.enter_context(meta_as_cuda(on_transfer))
        if importlib.util.find_spec("triton") is not None:
            from sashimi_kernels.triton_backend.launch import Launch, observing

            def on_launch(launched: Launch, tensors: list[Tensor]) -> None:
                name = f"triton.{launched.kernel.__name__.strip('_')}"
                different = {id(tensor): tensor for tensor in tensors}.values()  # some stand in for absent ones
                self._counts.add(name, 1, sum(map(distinct_bytes, different)))

            self._stack.enter_context(observing(on_launch))
        self._stack.enter_context(_CountingMode(self._counts))
        return self._counts

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)


class _CountingMode(TorchDispatchMode):
    """Counts the operations below autograd, where composite operations are already composed."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        inputs = list(tensors_in((args, kwargs)))
        if _copies_to_cpu(func, args, kwargs) or torch.Tag.data_dependent_output in func.tags:
            return self._synchronize(func, args, kwargs, inputs) if _on_meta(inputs) else func(*args, **kwargs)
        if _on_meta(inputs):
            _refuse_unknown_sizes(func, args)
            with self:
                # Composite operations arrive here only from inside of a custom operation, which is below autograd.
                parts = func.decompose if (body := _body(func)) is None else body
                result = parts(*args, **kwargs)
            if result is not NotImplemented:
                return result
        # Fused optimizers only write to their arguments; some of their forms have no implementation for "meta".
        result = None if _name(func).startswith("_fused_adam") else func(*args, **kwargs)
        if _on_meta([*inputs, *tensors_in(result)]):
            self._count(func, args, kwargs, inputs, result)
        return result

    def _count(self, func: Any, args: tuple, kwargs: dict[str, Any], inputs: list[Tensor], result: Any) -> None:
        name = _name(func)
        if _is_view(func):
            return
        if name in ("_to_copy", "copy_") and inputs[-1].device.type == "cpu" and inputs[-1].ndim:
            kind = "" if kwargs.get("non_blocking", args[2] if len(args) > 2 else False) else "blocking "
            self.counts.transfers.append(f"{kind}copy of {tuple(inputs[-1].shape)} at {_place()}")
            return
        n_launches = launches(name, args, result) if _has_elements(inputs, result) else 0
        if n_launches:
            self.counts.add(f"aten.{name.rstrip('_')}", n_launches, _traffic(func, args, kwargs, inputs, result))

    def _synchronize(self, func: Any, args: tuple, kwargs: dict[str, Any], inputs: list[Tensor]) -> Any:
        """Record the synchronization and return ones in the place of the values."""
        name = _name(func)
        if name == "equal":
            self.counts.add(f"aten.{name}", launches(name, args, None), sum(map(distinct_bytes, inputs)))
        self.counts.synchronizations.append(f"aten.{name} at {_place()}")
        if name == "_to_copy":
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if name == "copy_":
            return args[0].fill_(1)
        return torch.ones((), dtype=args[0].dtype).item() if name == "_local_scalar_dense" else True


def _traffic(func: Any, args: tuple, kwargs: dict[str, Any], inputs: list[Tensor], result: Any) -> int:
    """Return the bytes that an operation reads and writes."""
    written = list(_written(func, args, kwargs))
    ids = {id(x) for x in written}
    results = [x for x in tensors_in(result) if id(x) not in ids]
    overwritten = ids if _name(func) in _OVERWRITES or func._schema.overload_name == "out" else set()
    read = {id(x): x for x in inputs if id(x) not in overwritten and x.device.type == "meta"}
    return sum(map(distinct_bytes, [*read.values(), *written, *results]))


def _written(func: Any, args: tuple, kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the arguments that an operation writes to."""
    found: list[Tensor] = []
    for index, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found += tensors_in(args[index] if index < len(args) else kwargs.get(argument.name))
    return found


def _is_view(func: Any) -> bool:
    infos = [value.alias_info for value in func._schema.returns]
    return bool(infos) and all(info is not None and not info.is_write for info in infos)


def _copies_to_cpu(func: Any, args: tuple, kwargs: dict[str, Any]) -> bool:
    """Return whether an operation copies values to the CPU and waits for them."""
    name = _name(func)
    if name == "_to_copy":
        target = kwargs.get("device")
        return target is not None and target.type == "cpu" and not kwargs.get("non_blocking")
    return name == "copy_" and args[0].device.type == "cpu" and not (len(args) > 2 and args[2])


def _refuse_unknown_sizes(func: Any, args: tuple) -> None:
    """Raise an error if the number of elements of the result depends on values."""
    if torch.Tag.dynamic_output_shape not in func.tags:
        return
    name = _name(func)
    if name == "index" and all(x is None or x.dtype not in (torch.bool, torch.uint8) for x in args[1]):
        return
    if name == "repeat_interleave" and len(args) > 1:
        return
    raise RuntimeError(
        f"aten.{name} at {_place()} waits for the device, and the size of its result depends on values, which tensors "
        'on "meta" do not have: it cannot be counted, so replace it by an operation of fixed size'
    )


def _body(func: Any) -> Callable[..., Any] | None:
    """Return the Python function of a custom operation of this package, or None for another operation."""
    if func.namespace != _NAMESPACE:
        return None
    from torch._library.custom_ops import OPDEFS

    return OPDEFS[func._schema.name]._init_fn


def _name(func: Any) -> str:
    return func._schema.name.partition("::")[2]


def _on_meta(tensors: list[Tensor]) -> bool:
    return any(x.device.type == "meta" for x in tensors)


def _has_elements(inputs: list[Tensor], result: Any) -> bool:
    outputs = list(tensors_in(result))
    return any(x.numel() for x in outputs or inputs)


def _place() -> str:
    """Return file and line of the innermost caller outside of PyTorch, this module and ``launch``."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_FOREIGN):
        frame = frame.f_back
    if frame is None:
        return "an unknown place"
    path = Path(frame.f_code.co_filename)
    spec = frame.f_globals.get("__spec__")  # it has the name of a module that runs as __main__
    depth = 1 if spec is None else spec.name.count(".") + 1
    return f"{Path(*path.parts[-depth:])}:{frame.f_lineno}"
