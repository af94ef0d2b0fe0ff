"""Which implementation runs: ``reference`` (the definition), ``torch`` (fast, any device), ``triton`` (CUDA and ROCm).

``backend="auto"`` takes the environment variable ``SASHIMI_KERNELS`` when it is set and the fastest backend of the
tensor's device otherwise. A backend that is asked for and cannot run is an error, never a slower one in its place.
"""

import importlib
import os
from types import ModuleType

import torch

ENVIRONMENT_VARIABLE = "SASHIMI_KERNELS"
_MODULES = {
    "reference": "sashimi_kernels.reference",
    "torch": "sashimi_kernels.torch_backend",
    "triton": "sashimi_kernels.triton_backend",
}


class BackendUnavailableError(RuntimeError):
    """A kernel backend was asked for by name and cannot run here."""


def available_backends() -> tuple[str, ...]:
    """Names that ``backend=`` and ``SASHIMI_KERNELS`` accept, besides "auto"."""
    return tuple(_MODULES)


def select_backend(backend: str, device: torch.device, operation: str) -> ModuleType:
    """The module that implements ``operation`` for this request and device.

    Raises:
        BackendUnavailableError: the name is unknown, or that backend cannot run on this device.
    """
    name = backend
    if name == "auto":
        name = os.environ.get(ENVIRONMENT_VARIABLE, "auto")
    if name == "auto":
        name = "torch"
    if name not in _MODULES:
        raise BackendUnavailableError(
            f"kernel backend {name!r} cannot run on {device}: this version has {', '.join(_MODULES)}; "
            f"choose one of them with backend= or {ENVIRONMENT_VARIABLE}, or 'auto'"
        )
    return importlib.import_module(_MODULES[name])
