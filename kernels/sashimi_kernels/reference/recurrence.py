"""Reference implementations of one recurrence step."""

import torch
from torch import Tensor

from sashimi_kernels.discretization import DiscreteNPLR


def diagonal_step(
    u: Tensor, state: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, gelu: bool
) -> tuple[Tensor, Tensor]:
    """Compute x = a state + b u and its output."""
    x = a * state + b * u.unsqueeze(-1)  # (B, H, N)
    return _output(u, x, c, skip, gelu), x


def nplr_step(
    u: Tensor, state: Tensor, system: DiscreteNPLR, c: Tensor, skip: Tensor, gelu: bool
) -> tuple[Tensor, Tensor]:
    """Compute x = a state - system.u · 2 Re(v · state) + b u and its output."""
    inner = 2 * (system.v * state).real.sum(-1, keepdim=True)  # (B, H, 1)
    x = system.a * state - system.u * inner + system.b * u.unsqueeze(-1)  # (B, H, N)
    return _output(u, x, c, skip, gelu), x


def _output(u: Tensor, x: Tensor, c: Tensor, skip: Tensor, gelu: bool) -> Tensor:
    y = 2 * (c * x.unsqueeze(1)).real.sum(-1) + skip * u.unsqueeze(1)  # (B, M, H)
    if gelu:
        y = y * (1 + torch.erf(y / 2**0.5)) / 2
    return y.to(u.dtype)
