"""Engines that generate samples: their interface, the eager engine, and the selection of an engine."""

import importlib.util
import os
import warnings
from typing import Any, Protocol

import torch
from torch import Tensor

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.generation.cuda_graph import CudaGraphEngine
from sashimi_diffusion.generation.sampling import Sampling, sample_tokens

ENGINES = ("auto", "eager", "numba", "cuda-graph", "triton")
WEIGHTS = ("float32", "bfloat16", "int16", "int8")
"""Formats of weights in memory; the compiled engine has all of them, the other engines have the first one."""
_INSTALL = "pip install numba"


class Engine(Protocol):
    """Generator of the samples of ``batch_size`` clips; it keeps their state, at first the model's initial state."""

    def load(self, state: Any) -> None:
        """Continue from a state of the model with ``batch_size`` clips."""

    def run(self, tokens: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor, Tensor]:
        """Generate the n samples after the inputs ``tokens``.

        Args:
            tokens: inputs of the first step, int64 (B,).
            uniforms: random numbers in [0, 1) that select the samples, float64 (B, n).
            sampling: temperature, top-k and top-p.

        Returns:
            tokens, log-probabilities and entropies (B, n), see :func:`sample_tokens`.
        """


class EagerEngine:
    """Engine that runs a model one PyTorch operation after the other: any model, any device, slow.

    Args:
        model: an ``AutoregressiveModel`` in evaluation mode.
        batch_size: number of clips generated together.
    """

    def __init__(self, model: Any, batch_size: int) -> None:
        self.model, self.state = model, model.initial_state(batch_size)

    def load(self, state: Any) -> None:
        """Continue from a state of the model with ``batch_size`` clips."""
        self.state = state

    @torch.no_grad()
    def run(self, tokens: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor, Tensor]:
        """Generate the samples after the inputs ``tokens`` (B,), one for each column of ``uniforms`` (B, n).

        Returns:
            tokens, log-probabilities and entropies (B, n), see :func:`sample_tokens`.
        """
        generated = []
        for column in uniforms.to(tokens.device).unbind(1):
            generated.append(sample_tokens(self._logits(tokens), column, sampling))
            tokens = generated[-1][0]
        all_tokens, log_probabilities, entropies = (torch.stack(parts, 1) for parts in zip(*generated, strict=True))
        return all_tokens, log_probabilities, entropies

    def _logits(self, tokens: Tensor) -> Tensor:
        logits, self.state = self.model.step(tokens, self.state)
        return logits


def create_engine(name: str, model: Any, batch_size: int, weights: str = "float32") -> Engine:
    """Create an engine.

    Args:
        name: "eager" runs any model on any device. "numba" runs a SaShiMi model in float32 on a CPU, about a hundred
            times faster; it needs the extra ``fast``. "cuda-graph" runs any model on a CUDA device, without Python
            between its kernels. "triton" runs a SaShiMi model on a CUDA device in one kernel per call of
            :meth:`Engine.run`; it has not been timed on a GPU yet. "auto" selects the fastest of the others that can
            run.
        model: an ``AutoregressiveModel`` in evaluation mode.
        batch_size: number of clips generated together.
        weights: format of the weights of the linear maps in memory, one of ``WEIGHTS``. "float32" is exact. A stream
            reads almost all weights at every sample, so fewer bytes are faster; they change the probabilities of the
            tokens slightly. Only "numba" has other formats than "float32".

    Raises:
        UserError: a name is unknown, or the engine cannot run this model here.
    """
    name = engine_name(name, model)
    require_engine(name, model, torch.device(model.device))
    require_weights(weights, name)
    if name == "eager":
        return EagerEngine(model, batch_size)
    if name == "cuda-graph":
        return CudaGraphEngine(model, batch_size)
    if name == "triton":
        from sashimi_diffusion.generation.triton_engine import TritonEngine

        return TritonEngine(model, batch_size)
    from sashimi_diffusion.generation.numba_engine import NumbaEngine

    return NumbaEngine(model, batch_size, weights=weights)


def engine_name(name: str, model: Any) -> str:
    """Return the name of the engine that :func:`create_engine` selects: "auto" is the fastest one that can run."""
    return _fastest(model) if name == "auto" else name


def require_weights(weights: str, engine: str) -> None:
    """Check the format of the weights for an engine that :func:`create_engine` has selected.

    Raises:
        UserError: the format is unknown, or the engine does not have it.
    """
    if weights not in WEIGHTS:
        raise UserError(f"unknown format of weights {weights!r}: expected one of {', '.join(WEIGHTS)}")
    if weights != WEIGHTS[0] and engine != "numba":
        raise UserError(
            f"weights in {weights} need the engine 'numba' (a SaShiMi model in float32 on the CPU, and {_INSTALL}), "
            f"this is the engine {engine!r}: leave the format of the weights out"
        )


def require_engine(name: str, model: Any, device: torch.device) -> None:
    """Check that an engine can run.

    Args:
        name: name of the engine, see :func:`create_engine`.
        model: an ``AutoregressiveModel``.
        device: where the model will be.

    Raises:
        UserError: the name is unknown, or the engine cannot run this model there.
    """
    if name not in ENGINES:
        raise UserError(f"unknown engine {name!r}: expected one of {', '.join(ENGINES)}")
    against = {"cuda-graph": _against_cuda_graph, "numba": _against_numba, "triton": _against_triton}
    if name in against and (reason := against[name](model, device)) is not None:
        raise UserError(f"engine {name!r} cannot run: {reason}; engine 'eager' can")


def _fastest(model: Any) -> str:
    device = torch.device(model.device)
    if _against_cuda_graph(model, device) is None:
        return "cuda-graph"
    if _against_numba(model, device) is None:
        return "numba"
    if _unsupported_by_numba(model, device) is None:
        warnings.warn(f"numba is not installed, so generation is slow: {_INSTALL}", stacklevel=5)
    return "eager"


def _against_cuda_graph(model: Any, device: torch.device) -> str | None:
    """Return why the engine "cuda-graph" cannot run; None: it can. All functions of this kind have these arguments."""
    return None if device.type == "cuda" else f"the model is on {device}, not on a CUDA device"


def _against_numba(model: Any, device: torch.device) -> str | None:
    if (reason := _unsupported_by_numba(model, device)) is not None:
        return reason
    return None if importlib.util.find_spec("numba") else f"the package numba is not installed ({_INSTALL})"


def _unsupported_by_numba(model: Any, device: torch.device) -> str | None:
    """Return why the compiled engine cannot run this model even if numba is installed, or None."""
    if device.type != "cpu":
        return f"the model is on {device}, not on the CPU"
    if not hasattr(model, "backbone"):
        return f"it runs SaShiMi models, not {type(model).__name__}"
    return None if model.dtype == torch.float32 else f"the model is in {model.dtype}, not in float32"


def _against_triton(model: Any, device: torch.device) -> str | None:
    if not hasattr(model, "backbone"):
        return f"it runs SaShiMi models, not {type(model).__name__}"
    if model.dtype not in (torch.float32, torch.bfloat16):
        return f"the model is in {model.dtype}, not in float32 or bfloat16"
    interpreted = device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1"
    if device.type != "cuda" and not interpreted:
        return f"the model is on {device}, not on a CUDA device (on a CPU, set TRITON_INTERPRET=1 to test the kernel)"
    if not importlib.util.find_spec("triton"):
        return "the package triton is not installed (it comes with PyTorch on Linux: pip install triton)"
    from sashimi_diffusion.generation.triton_engine import MAX_TOKENS

    tokens = model.config.num_tokens
    return None if tokens <= MAX_TOKENS else f"the model has {tokens} tokens, more than {MAX_TOKENS}"
