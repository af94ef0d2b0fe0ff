"""One recurrence step in plain PyTorch."""

import torch
from torch import Tensor
from torch.nn import functional as F

from sashimi_kernels.discretization import DiscreteNPLR


def diagonal_step(
    u: Tensor, state: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, gelu: bool
) -> tuple[Tensor, Tensor]:
    """Compute the new state in one pass over the old one, and its output."""
    signal = u.to(skip.dtype)
    x = torch.addcmul(b * signal.unsqueeze(-1), a, state)  # (B, H, N)
    return _output(signal, x, c, skip, gelu).to(u.dtype), x


def nplr_step(
    u: Tensor, state: Tensor, system: DiscreteNPLR, c: Tensor, skip: Tensor, gelu: bool
) -> tuple[Tensor, Tensor]:
    """Compute the new state, with the rank-one part and the input in one term, and its output."""
    signal = u.to(skip.dtype)
    inner = 2 * (system.v * state).real.sum(-1)  # (B, H)
    driven = system.b * signal.unsqueeze(-1) - system.u * inner.unsqueeze(-1)
    x = torch.addcmul(driven, system.a, state)  # (B, H, N)
    return _output(signal, x, c, skip, gelu).to(u.dtype), x


def _output(signal: Tensor, x: Tensor, c: Tensor, skip: Tensor, gelu: bool) -> Tensor:
    y = torch.addcmul(2 * (c * x.unsqueeze(1)).real.sum(-1), skip, signal.unsqueeze(1))  # (B, M, H)
    return F.gelu(y) if gelu else y
