"""Whether clips fit in memory, found out before hours are spent on them."""

from typing import Any

import psutil
import torch
from torch import Tensor

from sashimi_diffusion.errors import UserError

# Per sample of a clip: token, log-probability, entropy, random number; twice, when the blocks are joined.
_BYTES_PER_SAMPLE = 2 * (8 + 4 + 4) + 8
# Activations of a prefix that exist at once, in float32 numbers per token: its logits, their logarithm, their gradient-
# free copies, and the widest features at the raw rate.
_LOGIT_COPIES = 4


def check_memory(model: Any, batch_size: int, length: int, prefix_length: int) -> None:
    """Raise UserError if ``batch_size`` clips of ``length`` samples would not fit in the memory that is free."""
    needed = batch_size * (
        3 * state_bytes(model.initial_state(1))  # the present one, the next one, an engine's own
        + length * _BYTES_PER_SAMPLE
        + prefix_length * model.config.num_tokens * 4 * _LOGIT_COPIES
    )
    device = torch.device(model.device)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if needed > free:
        raise UserError(
            f"{batch_size} clips of {length} samples need about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: "
            "make fewer at once, or shorter ones"
        )


def state_bytes(state: Any) -> int:
    """Memory of a nested tuple of tensors."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    return sum(map(state_bytes, state)) if isinstance(state, tuple) else 0
