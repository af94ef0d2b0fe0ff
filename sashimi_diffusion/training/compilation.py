"""torch.compile of the blocks of a network."""

from typing import Any

import torch
from torch import nn

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models.blocks import Block
from sashimi_diffusion.models.wavenet import WaveNetBlock

_BLOCKS = (Block, WaveNetBlock)


def compile_blocks(network: Any, device: torch.device, backend: str = "inductor") -> None:
    """Compile every block of a network in place; blocks of equal shapes share their code.

    Args:
        network: a denoiser or an autoregressive model.
        device: device of the network.
        backend: backend of ``torch.compile``.

    Raises:
        UserError: the network has no blocks that can be compiled, or ``torch.compile`` does not work on ``device``.
    """
    blocks = [module for module in network.modules() if isinstance(module, _BLOCKS)]
    if not blocks:
        raise UserError(f"training.compile is true, but {type(network).__name__} has no blocks to compile: set false")
    _require_compiler(device, backend)
    for block in blocks:
        block.compile(backend=backend, fullgraph=True, dynamic=False)


def _require_compiler(device: torch.device, backend: str) -> None:
    """Compile a small function, because the blocks would fail only in the first training step."""
    try:
        torch.compile(nn.functional.gelu, backend=backend)(torch.zeros(8, device=device))
    except Exception as error:  # the class depends on the backend and on the version of PyTorch
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"training.compile is true, but torch.compile does not work on {device.type}: {reason}; install a C++ "
            "compiler (on a GPU: Triton), or set false"
        ) from error
