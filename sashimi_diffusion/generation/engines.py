"""Which engine makes the samples."""

import importlib.util
import warnings
from typing import Any, Protocol

import torch
from torch import Tensor

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.generation.cuda_graph import CudaGraphEngine
from sashimi_diffusion.generation.eager import EagerEngine
from sashimi_diffusion.generation.sampling import Sampling

ENGINES = ("auto", "eager", "numba", "cuda-graph")
_INSTALL = "pip install 'sashimi-diffusion[fast]'"


class Engine(Protocol):
    """Makes samples of ``batch_size`` clips from a state of its own, which begins before the first sample."""

    def __init__(self, model: Any, batch_size: int) -> None: ...

    def load(self, state: Any) -> None:
        """Go on from a state of the model, of ``batch_size`` clips."""

    def run(self, tokens: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor, Tensor]:
        """The samples after ``tokens`` (B,), one per column of ``uniforms`` (B, n), with what ``choose`` returns."""


def create_engine(name: str, model: Any, batch_size: int) -> Engine:
    """The engine called ``name``.

    "eager" runs any model anywhere; "numba" a SaShiMi model in float32 on a CPU, about a hundred times faster (extra
    ``fast``); "cuda-graph" any model on a CUDA device, without Python between its kernels. "auto" is the fastest of
    them that can run.

    Raises:
        UserError: an unknown name, or an engine that cannot run this model here.
    """
    if name not in ENGINES:
        raise UserError(f"unknown engine {name!r}: expected one of {', '.join(ENGINES)}")
    if name == "auto":
        name = _automatic(model)
    if name == "eager":
        return EagerEngine(model, batch_size)
    reason = _reason_against_cuda_graph(model) if name == "cuda-graph" else _reason_against_numba(model)
    if reason is not None:
        raise UserError(f"engine {name!r} cannot run: {reason}; engine 'eager' can")
    if name == "cuda-graph":
        return CudaGraphEngine(model, batch_size)
    from sashimi_diffusion.generation.numba_engine import NumbaEngine

    return NumbaEngine(model, batch_size)


def _automatic(model: Any) -> str:
    if _reason_against_cuda_graph(model) is None:
        return "cuda-graph"
    if _reason_against_numba(model) is None:
        return "numba"
    if _unsupported_by_numba(model) is None:
        warnings.warn(f"numba is not installed, so samples are made one operation at a time: {_INSTALL}", stacklevel=4)
    return "eager"


def _reason_against_cuda_graph(model: Any) -> str | None:
    device = torch.device(model.device)
    return None if device.type == "cuda" else f"the model is on {device}, not on a CUDA device"


def _reason_against_numba(model: Any) -> str | None:
    if (reason := _unsupported_by_numba(model)) is not None:
        return reason
    return None if importlib.util.find_spec("numba") else f"the package numba is not installed ({_INSTALL})"


def _unsupported_by_numba(model: Any) -> str | None:
    if torch.device(model.device).type != "cpu":
        return f"the model is on {model.device}, not on the CPU"
    if not hasattr(model, "backbone"):
        return f"it runs SaShiMi models, not {type(model).__name__}"
    return None if model.dtype == torch.float32 else f"the model is in {model.dtype}, not in float32"
