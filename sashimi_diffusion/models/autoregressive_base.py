"""The base class of the autoregressive models: logits of the next token, in parallel or one token at a time."""

from typing import Any

import torch
from torch import Tensor

from sashimi_diffusion.data.quantization import bits_of, check_quantization
from sashimi_diffusion.models.base import WaveformModel


class AutoregressiveModel(WaveformModel):
    """Base class of autoregressive models of quantized samples, p(x) = Π p(x_t | x_0 … x_{t-1}).

    The token x_t is the quantized sample t. Its logits are computed from input t, which is the token before it
    (:meth:`inputs`), and from all earlier inputs.

    A subclass has the config entries ``num_tokens``, ``quantization``, ``sample_rate`` and ``sample_size``, and
    implements :meth:`forward`, :meth:`initial_state`, :meth:`step` and :meth:`prefill`. Its states are nested tuples of
    tensors and numbers; no method changes the state that it receives. To generate waveforms, use
    :func:`sashimi_diffusion.generation.generate`.

    Raises:
        UserError: the quantization is unknown, the number of tokens is no power of two, or an error of
            :class:`WaveformModel`.
    """

    def __init__(self) -> None:
        super().__init__()
        check_quantization(self.config.quantization)
        bits_of(self.config.num_tokens)

    @property
    def start_token(self) -> int:
        """The input for the first sample: the token of silence."""
        return self.config.num_tokens // 2

    def forward(self, tokens: Tensor) -> Tensor:
        """Return the logits (B, num_tokens, L) for the inputs ``tokens`` (B, L), int64.

        Column t has the logits of the token that follows input t.

        Raises:
            UserError: L is zero or not a multiple of ``length_multiple``.
        """
        raise NotImplementedError

    def initial_state(self, batch_size: int) -> Any:
        """Return the state before the first input."""
        raise NotImplementedError

    def step(self, tokens: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Run one recurrence step.

        Args:
            tokens: one input per waveform, (B,), int64.
            state: state before this input.

        Returns:
            logits (B, num_tokens) and the next state.
        """
        raise NotImplementedError

    def prefill(self, tokens: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        """Process many inputs from a state; equal to L recurrence steps, but parallel.

        Args:
            tokens: inputs, (B, L), int64, any L of at least 1.
            state: state before these inputs; None is the initial state.

        Returns:
            logits (B, num_tokens, L) and the next state.

        Raises:
            UserError: L is zero.
        """
        raise NotImplementedError

    def inputs(self, tokens: Tensor, first: Tensor | None = None) -> Tensor:
        """Return the inputs whose logits predict ``tokens``: the tokens shifted by one position, (B, L), int64.

        Args:
            tokens: tokens to predict, (B, L), int64.
            first: first input, (B,), int64: the token before ``tokens``. None is the start token.
        """
        if first is None:
            first = tokens.new_full(tokens.shape[:1], self.start_token)
        return torch.cat([first.unsqueeze(1), tokens], dim=1)[:, :-1]

    @torch.no_grad()
    def score(self, tokens: Tensor) -> Tensor:
        """Return the log-probability of each token given the tokens before it, in nats, float32 (B, L).

        Args:
            tokens: (B, L), int64, from the beginning of a waveform.

        Raises:
            UserError: L is zero.
        """
        logits, _ = self.prefill(self.inputs(tokens))
        return logits.float().log_softmax(dim=1).gather(1, tokens.unsqueeze(1)).squeeze(1)


def detached(state: Any) -> Any:
    """Return ``state`` detached from the autograd graph, for truncated back-propagation."""
    if isinstance(state, Tensor):
        return state.detach()
    if isinstance(state, tuple):
        parts = [detached(part) for part in state]
        return type(state)(*parts) if hasattr(state, "_fields") else tuple(parts)
    return state
