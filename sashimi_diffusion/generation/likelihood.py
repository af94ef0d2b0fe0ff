"""Ordering and choosing clips by how likely the model finds them."""

import torch
from torch import Tensor

from sashimi_diffusion.errors import UserError


def by_likelihood(log_likelihoods: Tensor) -> Tensor:
    """Indices of clips (B,) from the least likely to the most likely, equal ones in their order."""
    return torch.argsort(log_likelihoods, stable=True)


def likelihood_window(log_likelihoods: Tensor, lowest: float, highest: float) -> Tensor:
    """Indices, in their order, of the clips that remain when the least and the most likely ones are left out.

    Args:
        log_likelihoods: of clips, (B,).
        lowest: share of the clips left out at the lower end, rounded down to whole clips.
        highest: the same at the upper end.

    Raises:
        UserError: shares below 0, or that leave nothing.
    """
    if not (lowest >= 0 and highest >= 0 and lowest + highest < 1):
        raise UserError(f"the shares left out must be at least 0 and below 1 together, got {lowest:g} and {highest:g}")
    count = len(log_likelihoods)
    order = by_likelihood(log_likelihoods)
    # A share like 0.3 of 10 clips is 3 of them, whatever 0.3 is in binary.
    kept = order[int(count * lowest + 1e-9) : count - int(count * highest + 1e-9)]
    return kept.sort().values
