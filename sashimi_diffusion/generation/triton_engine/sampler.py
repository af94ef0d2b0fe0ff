"""Sample tokens from logits inside a kernel; :func:`sashimi_diffusion.generation.sample_tokens` is the definition.

Tokens are ordered by their distance below the highest logit. For numbers that are not negative, the order of the
float32 numbers is that of their bits as integers, so the limits of top-k and top-p are found by bisection of integers,
without sorting.
"""
# mypy: disable-error-code="no-untyped-def"

import triton
import triton.language as tl


@triton.jit
def sample_tokens(logits, mask, uniforms, temperature, top_k, top_p):
    """Sample the tokens of some streams.

    Args:
        logits: float32 (streams, tokens).
        mask: whether a column is a token, (1, tokens).
        uniforms: float32 (streams).
        temperature: divides the logits, above 0.
        top_k: number of tokens to sample from; 1 selects the first of the most likely tokens, 0 samples from all.
        top_p: see :class:`sashimi_diffusion.generation.Sampling`.

    Returns:
        tokens, int32, and their log-probabilities and the entropies in nats, float32, each (streams).
    """
    n_columns: tl.constexpr = logits.shape[1]
    columns = tl.arange(0, n_columns)[None, :]
    logits = tl.where(mask, logits, -float("inf"))
    distance = tl.max(logits, 1)[:, None] - logits
    weights = tl.exp(-distance)
    total = tl.sum(weights, 1)
    entropies = tl.log(total) + tl.sum(weights * tl.where(weights > 0, distance, 0.0), 1) / total
    kept = tl.exp(-distance / temperature)
    if top_k > 0:
        counts = tl.where(mask, 1.0, tl.zeros_like(kept))
        kept = _first(kept, distance, counts, top_k + tl.zeros_like(total))
    if top_p < 1:
        kept = _first(kept, distance, kept, top_p * tl.sum(kept, 1))
    cumulative = tl.cumsum(kept, 1)
    threshold = uniforms * tl.max(cumulative, 1)
    # Parallel sums may decrease by rounding, so only tokens with a probability above 0 are candidates.
    selected = tl.min(tl.where((cumulative > threshold[:, None]) & (kept > 0), columns, n_columns), 1)
    tokens = tl.minimum(selected, tl.max(tl.where(kept > 0, columns, 0), 1))
    distances = tl.sum(tl.where(columns == tokens[:, None], distance, 0.0), 1)
    return tokens, -distances - tl.log(total), entropies


@triton.jit
def _first(probabilities, distance, masses, limits):
    """Return ``probabilities`` with zeros for the tokens that have at least ``limits`` of the mass before them.

    Args:
        probabilities, masses: (streams, tokens).
        distance: order of the tokens, (streams, tokens); the first of equal tokens comes first.
        limits: (streams).
    """
    keys = distance.to(tl.int32, bitcast=True)
    # The mass of the tokens before ``low`` is below the limit; that before ``high`` is not, or no token is at ``high``.
    low = tl.zeros_like(limits).to(tl.int32)
    high = low + 0x7F800001  # above infinity
    for _ in range(31):
        middle = low + (high - low) // 2
        below = tl.sum(tl.where(keys < middle[:, None], masses, 0.0), 1) < limits
        low = tl.where(below, middle, low)
        high = tl.where(below, high, middle)
    mass_before = tl.sum(tl.where(keys < low[:, None], masses, 0.0), 1)
    ties = tl.where(keys == low[:, None], masses, 0.0)
    before = mass_before[:, None] + tl.cumsum(ties, 1) - ties
    inside = (keys < low[:, None]) | ((keys == low[:, None]) & (before < limits[:, None]))
    return tl.where(inside, probabilities, 0.0)
