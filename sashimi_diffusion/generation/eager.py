"""Generation as the model itself steps, one PyTorch operation after the other: any model, any device, slow."""

from typing import Any

import torch
from torch import Tensor

from sashimi_diffusion.generation.sampling import Sampling, choose


class EagerEngine:
    """Steps an autoregressive model from a state of its own.

    Args:
        model: an ``AutoregressiveModel`` in evaluation mode.
        batch_size: clips made at once.
    """

    def __init__(self, model: Any, batch_size: int) -> None:
        self.model, self.state = model, model.initial_state(batch_size)

    def load(self, state: Any) -> None:
        """Go on from a state of the model, of ``batch_size`` clips."""
        self.state = state

    @torch.no_grad()
    def run(self, tokens: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor, Tensor]:
        """Make the samples after ``tokens`` (B,), one for every column of ``uniforms`` (B, n).

        Returns:
            tokens (B, n), and their log-probabilities and entropies (B, n), see :func:`choose`.
        """
        made = []
        for column in uniforms.to(tokens.device).unbind(1):
            made.append(choose(self._logits(tokens), column, sampling))
            tokens = made[-1][0]
        return tuple(torch.stack(parts, dim=1) for parts in zip(*made, strict=True))

    def _logits(self, tokens: Tensor) -> Tensor:
        logits, self.state = self.model.step(tokens, self.state)
        return logits
