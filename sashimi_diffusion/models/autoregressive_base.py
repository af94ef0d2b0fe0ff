"""What every autoregressive model is: tokens in, scores of the next token out, in parallel or one at a time."""

from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin
from torch import Tensor


class AutoregressiveModel(ModelMixin, ConfigMixin):
    """p(x) = Π p(x_t | x_0 … x_{t-1}) over quantized samples.

    A subclass has the config entries ``num_tokens``, ``quantization``, ``sample_rate`` and ``sample_size``, the
    attribute ``length_multiple``, and the four methods below that raise NotImplementedError. Its states are nested
    tuples of tensors and numbers; no method changes the state it is given.
    """

    config_name = "config.json"
    length_multiple: int = 1

    @property
    def start_token(self) -> int:
        """The input before the first sample: silence."""
        return self.config.num_tokens // 2

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, num_tokens, L) of inputs ``tokens`` (B, L), int64; column t scores the token after token t.

        L must be a multiple of ``length_multiple``.
        """
        raise NotImplementedError

    def initial_state(self, batch_size: int) -> Any:
        """The state before the first input."""
        raise NotImplementedError

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """One input ``tokens`` (B,) from ``state``: logits (B, num_tokens) and the next state."""
        raise NotImplementedError

    def prefill(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Inputs ``tokens`` (B, L), any L, from ``state``: logits (B, num_tokens, L) and the state after them.

        Equal to L steps, but parallel. None is the state before the first input.
        """
        raise NotImplementedError

    def inputs(self, tokens: Tensor, first: Tensor | None = None) -> Tensor:
        """The inputs that predict ``tokens`` (B, L): one later, behind ``first`` (B,) or the start token."""
        if first is None:
            first = tokens.new_full(tokens.shape[:1], self.start_token)
        return torch.cat([first.unsqueeze(1), tokens[:, :-1]], dim=1)

    @torch.no_grad()
    def score(self, tokens: Tensor) -> Tensor:
        """Log-probability in nats of each of ``tokens`` (B, L) given those before it: float32 (B, L)."""
        logits, _ = self.prefill(self.inputs(tokens))
        return logits.float().log_softmax(dim=1).gather(1, tokens.unsqueeze(1)).squeeze(1)


def detached(state: Any) -> Any:
    """The same state, cut off from the graph that made it: for truncated back-propagation."""
    if isinstance(state, Tensor):
        return state.detach()
    if isinstance(state, tuple):
        parts = [detached(part) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return state
