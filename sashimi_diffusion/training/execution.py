"""How a network computes: with gradient checkpointing, with compiled blocks."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models.blocks import Block
from sashimi_diffusion.models.wavenet import WaveNetBlock
from sashimi_diffusion.models.wavenet_autoregressive import WaveNetLayer
from sashimi_diffusion.terminal import first_line

BACKEND = "inductor"
_BLOCKS = (Block, WaveNetBlock, WaveNetLayer)


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
