"""Sample a token from its logits, compiled; :func:`sashimi_diffusion.generation.sample_tokens` is the definition."""

import numpy as np
from numba import njit


@njit(nogil=True)
def sample_token(
    logits: np.ndarray, uniform: float, temperature: float, top_k: int, top_p: float, probabilities: np.ndarray
) -> tuple[int, float, float]:
    """Return the token, and its log-probability and the entropy in nats, before temperature, top-k and top-p.

    Args:
        logits: float32 (num_tokens,).
        uniform: number in [0, 1).
        temperature, top_k, top_p: see :class:`sashimi_diffusion.generation.Sampling`; ``top_k`` 0 keeps all tokens.
        probabilities: memory that is overwritten, float64 (num_tokens,).
    """
    highest, best = logits[0], 0
    for token in range(1, logits.size):
        if logits[token] > highest:
            highest, best = logits[token], token
    total, weighted = 0.0, 0.0
    for token in range(logits.size):
        shifted = float(logits[token] - highest)
        weight = np.exp(shifted)
        probabilities[token] = weight
        total += weight
        weighted += weight * shifted
    normalizer = np.log(total)
    entropy = normalizer - weighted / total
    token = best if temperature == 0.0 else _draw(logits, highest, uniform, temperature, top_k, top_p, probabilities)
    return token, float(logits[token] - highest) - normalizer, entropy


@njit(nogil=True)
def _draw(
    logits: np.ndarray,
    highest: float,
    uniform: float,
    temperature: float,
    top_k: int,
    top_p: float,
    probabilities: np.ndarray,
) -> int:
    """Return the token that ``uniform`` selects; ``probabilities`` are those at temperature 1, not normalized."""
    total = 0.0
    for token in range(logits.size):
        if temperature != 1.0:
            probabilities[token] = np.exp((float(logits[token]) - float(highest)) / temperature)
        total += probabilities[token]
    if top_k or top_p < 1.0:
        total = _truncate(probabilities, top_k, top_p)
    cumulative, threshold, last = 0.0, uniform * total, 0
    for token in range(logits.size):
        if probabilities[token] > 0.0:
            cumulative += probabilities[token]
            last = token
            if cumulative > threshold:
                break
    return last


@njit(nogil=True)
def _truncate(probabilities: np.ndarray, top_k: int, top_p: float) -> float:
    """Set the probabilities outside of top-k and top-p to zero, and return the sum of the others."""
    order = np.argsort(-probabilities, kind="mergesort")
    keep = probabilities.size if top_k == 0 else min(top_k, probabilities.size)
    kept = 0.0
    for rank in range(keep):
        kept += probabilities[order[rank]]
    before, limit, rest = 0.0, top_p * kept, 0.0
    for rank in range(probabilities.size):
        token = order[rank]
        inside = rank < keep and (top_p >= 1.0 or before < limit)
        before += probabilities[token]
        if inside:
            rest += probabilities[token]
        else:
            probabilities[token] = 0.0
    return rest
