"""Sample tokens from logits with temperature, top-k and top-p."""

import numbers
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from sashimi_diffusion.arguments import short_form
from sashimi_diffusion.errors import UserError

_LOWEST_TEMPERATURE = 1e-30  # logits divided by a lower one are infinite
_LARGEST_TOP_K = 2**31 - 1  # in the integers of every engine


@dataclass(frozen=True)
class Sampling:
    """Parameters of sampling a token from its distribution.

    Args:
        temperature: divides the logits; 0 always selects the most likely token.
        top_k: number of most likely tokens to sample from; None: all.
        top_p: sample from the smallest set of most likely tokens that has at least this probability, after temperature
            and top_k (nucleus sampling, arXiv 1904.09751); 1: all.

    Raises:
        UserError: a value is out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("temperature", self.temperature), ("top_p", self.top_p)):
            if not isinstance(value, numbers.Real) or isinstance(value, bool):
                raise UserError(f"{name} must be a number, got {short_form(value)}")
        if self.temperature != 0 and not _LOWEST_TEMPERATURE <= self.temperature <= sys.float_info.max:
            raise UserError(
                f"temperature must be 0 (greedy) or above, at least {_LOWEST_TEMPERATURE:g} and finite, got "
                f"{short_form(self.temperature)}"
            )
        if self.top_k is not None and not 1 <= self.top_k <= _LARGEST_TOP_K:
            raise UserError(f"top_k must be at least 1 and at most {_LARGEST_TOP_K}, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, got {short_form(self.top_p)}")


def sample_tokens(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor, Tensor]:
    """Sample the next tokens by inverting the cumulative distribution; equal ``uniforms`` give equal tokens.

    Args:
        logits: (B, num_tokens).
        uniforms: numbers in [0, 1), (B,).
        sampling: temperature, top-k and top-p.

    Returns:
        tokens, int64 (B,); their log-probabilities and the entropies in nats, float32 (B,). Both are of the model's
        distribution before temperature, top-k and top-p.
    """
    tokens = select_tokens(logits, uniforms, sampling)
    return tokens, *score_tokens(logits, tokens)


def select_tokens(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> Tensor:
    """Return the tokens of :func:`sample_tokens`, int64 (B,)."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    cumulative = _probabilities(logits, sampling).cumsum(dim=-1)
    # The total differs from 1 by rounding and by top-k and top-p, so the uniform number is scaled by it.
    threshold = uniforms.to(cumulative).unsqueeze(-1) * cumulative[:, -1:]
    tokens = (cumulative <= threshold).sum(dim=-1)
    last = (cumulative < cumulative[:, -1:]).sum(dim=-1)  # the last token with a probability above 0
    return torch.minimum(tokens, last)


def score_tokens(logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Return the log-probabilities of ``tokens`` and the entropies of their distributions, in nats, float32.

    Args:
        logits: (..., num_tokens).
        tokens: int64 (...).
    """
    log_probabilities = logits.float().log_softmax(dim=-1)  # (..., num_tokens)
    entropies = -(log_probabilities.exp() * log_probabilities).nan_to_num(0).sum(dim=-1)
    return log_probabilities.gather(-1, tokens.unsqueeze(-1)).squeeze(-1), entropies


def _probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """Return the distribution to sample from, not normalized, float64 (B, num_tokens)."""
    scaled = logits.double() if sampling.temperature == 1 else logits.double() / sampling.temperature
    probabilities = scaled.softmax(dim=-1)
    if sampling.top_k is None and sampling.top_p == 1:
        return probabilities
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)
    if sampling.top_k is not None:
        ordered[:, sampling.top_k :] = 0
    if sampling.top_p < 1:
        before = ordered.cumsum(dim=-1) - ordered
        ordered = ordered.masked_fill(before >= sampling.top_p * ordered.sum(dim=-1, keepdim=True), 0)
    return torch.zeros_like(ordered).scatter(1, order, ordered)
