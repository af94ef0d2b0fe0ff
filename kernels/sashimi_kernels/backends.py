"""Selection of the backend: ``reference`` (definitions), ``torch`` (any device) or ``triton`` (CUDA and ROCm).

``backend="auto"`` takes the environment variable ``SASHIMI_KERNELS`` if it is set. Otherwise float64 and all devices
except CUDA and ROCm devices get ``torch``. A CUDA or ROCm device gets the fastest backend according to
``python -m sashimi_kernels.benchmark --device cuda``, and without a measurement ``triton`` if it can run.

If a requested backend cannot run, an error is raised. There is no silent fallback to a slower one.
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
    """Return the names that ``backend=`` and ``SASHIMI_KERNELS`` accept, except "auto"."""
    return _NAMES


def select_backend(
    backend: str, device: torch.device, operation: str, dtype: torch.dtype = torch.float32, length: int = 1
) -> ModuleType:
    """Return the module that implements ``operation``. Arguments and errors are those of :func:`backend_name`."""
    return _module(backend_name(backend, device, operation, dtype, length))


def backend_name(
    backend: str, device: torch.device, operation: str, dtype: torch.dtype = torch.float32, length: int = 1
) -> str:
    """Return the name of the backend that runs ``operation``. torch.compile can trace this function.

    Args:
        backend: "auto" or one of ``available_backends()``.
        device: device of the tensors.
        operation: name of the operation.
        dtype: working precision of the operation, or its complex counterpart.
        length: number of samples, 1 if the operation has no such axis.

    Raises:
        BackendUnavailableError: the name is unknown, or this backend cannot run here.
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
    # Imported on demand because Triton is not installed on every system. torch.compile traces import statements but not
    # importlib.
    if name == "reference":
        import sashimi_kernels.reference as reference

        return reference
    if name == "torch":
        import sashimi_kernels.torch_backend as torch_backend

        return torch_backend
    import sashimi_kernels.triton_backend as triton_backend

    return triton_backend


def _fastest(device: torch.device, operation: str, dtype: torch.dtype, length: int) -> str:
    if device.type != "cuda" or _interpreting() or _triton_obstacle(device, dtype) is not None:
        return "torch"
    from sashimi_kernels.choices import measured_choice, nearest_length

    return measured_choice(device, operation, dtype, nearest_length(length)) or "triton"


def _triton_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why Triton kernels cannot run, or None if they can."""
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
