"""How a network computes: with gradient checkpointing, with compiled blocks, within the memory of the device."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models.blocks import Block
from sashimi_diffusion.models.wavenet import WaveNetBlock
from sashimi_diffusion.models.wavenet_autoregressive import WaveNetLayer
from sashimi_diffusion.terminal import first_line
from sashimi_diffusion.training.config import TrainingConfig

BACKEND = "inductor"
_BLOCKS = (Block, WaveNetBlock, WaveNetLayer)
_EXHAUSTED = ("out of memory", "can't allocate memory", "not enough memory")


def enable_gradient_checkpointing(network: Any) -> None:
    """Recompute the activations of a network in the backward pass.

    Raises:
        UserError: the network does not support it.
    """
    try:
        network.enable_gradient_checkpointing()
    except ValueError:
        raise UserError(
            f"training.gradient_checkpointing is true, but {type(network).__name__} does not support it: set false"
        ) from None


def compile_blocks(network: Any, device: torch.device, backend: str | Callable | None = None) -> None:
    """Compile every block of a network in place; blocks of equal shapes share their code.

    Args:
        network: a denoiser or an autoregressive model.
        device: device of the network.
        backend: backend of ``torch.compile``; None: BACKEND.

    Raises:
        UserError: the network has no blocks that can be compiled, or ``torch.compile`` does not work on ``device``.
    """
    blocks = [module for module in network.modules() if isinstance(module, _BLOCKS)]
    if not blocks:
        raise UserError(f"training.compile is true, but {type(network).__name__} has no blocks to compile: set false")
    backend = backend or BACKEND
    _require_compiler(device, backend)
    for block in blocks:
        block.compile(backend=backend, fullgraph=True, dynamic=False)


def _require_compiler(device: torch.device, backend: str | Callable) -> None:
    """Compile a small function, because the blocks would fail only in the first training step."""
    try:
        torch.compile(nn.functional.gelu, backend=backend)(torch.zeros(8, device=device))
    except Exception as error:  # the class depends on the backend and on the version of PyTorch
        reason = first_line(error)
        raise UserError(
            f"training.compile is true, but torch.compile does not work on {device.type}: {reason}; install a C++ "
            "compiler (on a GPU: Triton), or set false"
        ) from error


@contextlib.contextmanager
def memory_errors(training: TrainingConfig, device: torch.device, how_to_continue: Callable[[], str]) -> Iterator[None]:
    """Turn an error of the block that says that memory is exhausted into a UserError.

    Args:
        training: names the settings that the memory depends on.
        device: device of the network.
        how_to_continue: returns what to do with an interrupted run.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(text in str(error) for text in _EXHAUSTED):
            raise
        size, parts = training.batch_size, training.gradient_accumulation
        advice = [] if training.gradient_checkpointing else ["set training.gradient_checkpointing=true"]
        if size > 1:
            half = f"training.batch_size={(size + 1) // 2} training.gradient_accumulation={2 * parts}"
            advice.append(f"make the parts of a batch smaller, for example {half}")
        advice.append("shorten data.length in a new run")
        raise UserError(
            f"the memory of the device {device.type} is exhausted with training.batch_size={size} and "
            f"training.gradient_accumulation={parts}: {', or '.join(advice)}; {how_to_continue()}"
        ) from error
