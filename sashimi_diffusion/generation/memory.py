"""Whether clips fit in memory, found out before hours are spent on them."""

import math
from typing import Any

import torch
from torch import Tensor

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.generation.prefix import PIECE
from sashimi_diffusion.memory import available_memory

# Per sample of a clip: token, log-probability, entropy, random number; twice, when the blocks are joined.
_BYTES_PER_SAMPLE = 2 * (8 + 4 + 4) + 8
# Per sample of a prefix in one pass: float32 logits, their logarithm, its exponential, their product …
_LOGITS = 4 * 4
# … and features and kernels. They grow with the width, parameters with its square. The published networks of all three
# kinds were measured to need 3 to 11 bytes per root of their number of parameters.
_FEATURES = 12


def check_memory(model: Any, batch_size: int, length: int, prefix_length: int) -> None:
    """Raise UserError if ``batch_size`` clips of ``length`` samples would not fit in the memory that is free."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    needed = batch_size * (
        4 * state_bytes(model.initial_state(1))  # the present one, the next one, an engine's own and its spans
        + max(length, prefix_length) * _BYTES_PER_SAMPLE
        + min(prefix_length, PIECE) * (_LOGITS * model.config.num_tokens + int(_FEATURES * math.sqrt(parameters)))
    )
    device = torch.device(model.device)
    free = available_memory(device)
    if free is not None and needed > free:
        raise UserError(
            f"{batch_size} clips of {length} samples need about {needed / 1e9:.1f} GB, {free / 1e9:.1f} GB are free: "
            "make fewer at once, or shorter ones"
        )


def state_bytes(state: Any) -> int:
    """Memory of a nested tuple of tensors."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    return sum(map(state_bytes, state)) if isinstance(state, tuple) else 0
