"""Selection of the backend: ``reference`` (definitions), ``torch`` (any device) or ``triton`` (CUDA and ROCm).

``backend="auto"`` selects the backend that the environment variable ``SASHIMI_KERNELS`` names. If it is not set, the
backend is

- ``torch`` for float64, for all devices except CUDA and ROCm devices, and if Triton cannot run;
- the faster of ``torch`` and ``triton`` if ``python -m sashimi_kernels.benchmark --device cuda`` has measured them, or
  if the package ships a measurement of this card;
- ``triton`` in all other cases.

If a requested backend cannot run, an error is raised. There is no silent fallback to another one.

On the device "meta", where nothing runs, ``triton`` can be selected to count its launches (see ``counters``).
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
    """Return the names of all backends, whether they can run here or not; ``backend=`` also accepts "auto"."""
    return _NAMES


def select_backend(
    backend: str,
    device: torch.device,
    operation: str,
    dtype: torch.dtype = torch.float32,
    length: int = 1,
    batch: int = 1,
) -> ModuleType:
    """Return the module that implements ``operation``. Arguments and errors are those of :func:`backend_name`."""
    return _module(backend_name(backend, device, operation, dtype, length, batch))


def backend_name(
    backend: str,
    device: torch.device,
    operation: str,
    dtype: torch.dtype = torch.float32,
    length: int = 1,
    batch: int = 1,
) -> str:
    """Return the name of the backend that runs ``operation``. torch.compile can trace this function.

    Args:
        backend: "auto" or one of ``available_backends()``.
        device: device of the tensors.
        operation: name of the operation.
        dtype: working precision of the operation, real or complex.
        length: number of samples, 1 if the operation has no time axis.
        batch: batch size, 1 if the operation has no batch.

    Raises:
        BackendUnavailableError: the name is unknown, or this backend cannot run here.
    """
    name = backend
    if name == "auto":
        name = os.environ.get(ENVIRONMENT_VARIABLE, "auto")
    if name == "auto":
        name, _ = _fastest(device, operation, dtype, batch * length)
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


def explain_backend(
    device: torch.device, operation: str, dtype: torch.dtype = torch.float32, length: int = 1, batch: int = 1
) -> str:
    """Return the backend that ``backend="auto"`` selects and the reason, for example "torch: no CUDA device".

    Arguments are those of :func:`backend_name`. If the backend cannot run, the text is that of the error.
    """
    chosen = os.environ.get(ENVIRONMENT_VARIABLE, "auto")
    if chosen == "auto":
        name, reason = _fastest(device, operation, dtype, batch * length)
        return f"{name}: {reason}"
    try:
        return f"{backend_name('auto', device, operation, dtype)}: {ENVIRONMENT_VARIABLE}={chosen}"
    except BackendUnavailableError as error:
        return str(error)


def _fastest(device: torch.device, operation: str, dtype: torch.dtype, samples: int) -> tuple[str, str]:
    """Return the backend for "auto" and the reason in a few words."""
    if device.type != "cuda":
        return "torch", "the device is not a CUDA or ROCm device"
    if _interpreter_enabled():
        return "torch", "TRITON_INTERPRET is set"
    if (obstacle := _triton_obstacle(device, dtype)) is not None:
        return "torch", obstacle
    from sashimi_kernels.choices import measured_choice, nearest_size

    measured = measured_choice(device, operation, dtype, nearest_size(samples))
    return (measured, "faster in a measurement") if measured else ("triton", "not measured on this device")


def _triton_obstacle(device: torch.device, dtype: torch.dtype) -> str | None:
    """Return why Triton kernels cannot run, or None if they can."""
    if not _TRITON_INSTALLED:
        return "the triton package is not installed (it comes with PyTorch on Linux: pip install triton)"
    if dtype in _DOUBLE:
        return "its kernels work in float32, float16 and bfloat16, not in float64"
    if device.type == "cuda":
        from sashimi_kernels.choices import gpu_obstacle

        return gpu_obstacle(device)
    if device.type == "meta" or (device.type == "cpu" and _interpreter_enabled()):
        return None
    return "it needs a CUDA or ROCm device (or, on a CPU, its interpreter: set TRITON_INTERPRET=1 before Python starts)"


def _interpreter_enabled() -> bool:
    return os.environ.get("TRITON_INTERPRET") == "1"


def _unavailable(name: str, device: torch.device, reason: str) -> BackendUnavailableError:
    return BackendUnavailableError(
        f"kernel backend {name!r} cannot run on {device}: {reason}; choose another one with backend= or "
        f"{ENVIRONMENT_VARIABLE}, or 'auto'"
    )
