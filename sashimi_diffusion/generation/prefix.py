"""Absorbing a prefix: one pass after the other over pieces of it, so that its length does not need memory."""

from typing import Any

import torch
from torch import Tensor

PIECE = 2**15
"""Samples of a prefix in one pass."""


@torch.no_grad()
def absorb(model: Any, tokens: Tensor, piece: int = PIECE) -> tuple[Tensor, Tensor, Any]:
    """Run a prefix (B, P) through ``model``; equal to one pass over all of it.

    Returns:
        log-probability of each token given those before it and entropy of each one's distribution, in nats, float32
        (B, P), and the model's state before the last token is its input.
    """
    state, scores = None, []
    for inputs, targets in zip(model.inputs(tokens).split(piece, dim=1), tokens.split(piece, dim=1), strict=True):
        *scored, state = _absorb_piece(model, inputs, targets, state)
        scores.append(scored)
    log_probabilities, entropies = (torch.cat(parts, dim=1) for parts in zip(*scores, strict=True))
    return log_probabilities, entropies, state


def _absorb_piece(model: Any, inputs: Tensor, targets: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
    """A function of its own, so that no logits are left when the next piece begins."""
    logits, state = model.prefill(inputs, state)
    log_probabilities = logits.float().log_softmax(dim=1)  # (B, num_tokens, L)
    entropies = -(log_probabilities.exp() * log_probabilities).nan_to_num(0).sum(dim=1)
    return log_probabilities.gather(1, targets.unsqueeze(1)).squeeze(1), entropies, state
