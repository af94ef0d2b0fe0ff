"""Which implementation runs: ``reference`` (the definition), ``torch`` (fast, any device), ``triton`` (CUDA and ROCm).

``backend="auto"`` takes the environment variable ``SASHIMI_KERNELS`` when it is set. Otherwise, on a CUDA or ROCm
device it takes what ``python -m sashimi_kernels.benchmark --device cuda`` measured to be fastest there, and without a
measurement ``triton`` if it can run; float64, and every other device, get ``torch``.

A backend that is asked for and cannot run is an error, never a slower one in its place.
"""

import importlib.util
import os
from types import ModuleType

import torch

from sashimi_kernels.errors import BackendUnavailableError

ENVIRONMENT_VARIABLE = "SASHIMI_KERNELS"
_NAMES = ("reference", "torch", "triton")
_TRITON_INSTALLED = importlib.util.find_spec("triton") is not None
_DOUBLE = (torch.float64, torch.complex128)


def available_backends() -> tuple[str, ...]:
    """Names that ``backend=`` and ``SASHIMI_KERNELS`` accept, besides "auto"."""
    return _NAMES


def select_backend(
    backend: str, device: torch.device, operation: str, dtype: torch.dtype = torch.float32, length: int = 1
) -> ModuleType:
    """The module that implements ``operation`` for this request; arguments and errors as of :func:`backend_name`."""
    return _module(backend_name(backend, device, operation, dtype, length))


def backend_name(
    backend: str, device: torch.device, operation: str, dtype: torch.dtype = torch.float32, length: int = 1
) -> str:
    """Which backend runs ``operation`` for this request. torch.compile traces through it.

    Args:
        backend: "auto" or one of ``available_backends()``.
        device: where the tensors are.
        operation: name of the operation.
        dtype: precision that the operation works in, or its complex counterpart.
        length: number of samples, 1 where the operation has no such axis.

    Raises:
        BackendUnavailableError: the name is unknown, or that backend cannot run here.
    """
    name = backend
    if name == "auto":
        name = os.environ.get(ENVIRONMENT_VARIABLE, "auto")
    if name == "auto":
        name = _fastest(device, operation, dtype, length)
    if name not in _NAMES:
        raise _unavailable(name, device, f"this version has {', '.join(_NAMES)}")
    if name == "triton" and (obstacle := _triton_obstacle(device, dtype)) is not None:
        raise _unavailable(name, device, obstacle)
    return name


def _module(name: str) -> ModuleType:
    # Imported when asked for: the backends use this package themselves, and not every system has Triton. These are
    # statements because torch.compile traces them, and not importlib.
    if name == "reference":
        from sashimi_kernels import reference as module
    elif name == "torch":
        from sashimi_kernels import torch_backend as module
    else:
        from sashimi_kernels import triton_backend as module
    return module


def _fastest(device: torch.device, operation: str, dtype: torch.dtype, length: int) -> str:
    if device.type != "cuda" or _interpreting() or _triton_obstacle(device, dtype) is not None:
        return "torch"
    from sashimi_kernels.choices import measured_choice, nearest_length

    return measured_choice(device, operation, dtype, nearest_length(length)) or "triton"


def _triton_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Why Triton kernels cannot run, or None where they can."""
    if not _TRITON_INSTALLED:
        return "the triton package is not installed (it comes with PyTorch on Linux: pip install triton)"
    if dtype in _DOUBLE:
        return "its kernels work in float32, float16 and bfloat16, not in float64"
    if device.type == "cuda":
        from sashimi_kernels.choices import gpu_obstacle

        return gpu_obstacle(device)
    if device.type == "cpu" and _interpreting():
        return None
    return "it needs a CUDA or ROCm device (or, on a CPU, its interpreter: set TRITON_INTERPRET=1 before Python starts)"


def _interpreting() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _unavailable(name: str, device: torch.device, reason: str) -> BackendUnavailableError:
    return BackendUnavailableError(
        f"kernel backend {name!r} cannot run on {device}: {reason}; choose another one with backend= or "
        f"{ENVIRONMENT_VARIABLE}, or 'auto'"
    )
