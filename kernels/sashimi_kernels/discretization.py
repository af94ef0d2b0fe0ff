"""Discretization of continuous state spaces, in closed form.

Notation: x' = A x + B u and y = 2 Re(C x) over half of the conjugate pairs; dt is the step size in the time units of A.
The discrete system is x[t] = Ā x[t-1] + B̄ u[t] and y[t] = 2 Re(C x[t]).
"""

from typing import NamedTuple

import torch
from torch import Tensor


class DiscreteDiagonal(NamedTuple):
    """Ā = exp(log_a) and B̄ = b of a diagonal system, both complex (H, N)."""

    log_a: Tensor
    b: Tensor


class DiscreteNPLR(NamedTuple):
    """A discrete diagonal-plus-rank-one system: Ā x = a x - u · 2 Re(v · x), and B̄ = b. All complex (H, N)."""

    a: Tensor
    u: Tensor
    v: Tensor
    b: Tensor


def discretize_diagonal(dt: Tensor, a: Tensor, b: Tensor, method: str) -> DiscreteDiagonal:
    """Discretize a diagonal system (S4D, arXiv 2206.11893, section 3.1).

    Args:
        dt: step sizes, real (H, 1).
        a: eigenvalues, complex (H, N), non-zero.
        b: input vector, complex (H, N).
        method: "zoh" (zero-order hold) or "bilinear" (Tustin).

    Raises:
        ValueError: the method is unknown.
    """
    dt_a = dt * a
    if method == "zoh":
        return DiscreteDiagonal(dt_a, b * torch.expm1(dt_a) / a)
    if method == "bilinear":
        half = dt_a / 2
        denominator = torch.reciprocal(1 - half)
        return DiscreteDiagonal(torch.log((1 + half) * denominator), dt * b * denominator)
    raise ValueError(f"unknown discretization {method!r}: expected 'zoh' or 'bilinear'")


def discretize_nplr(dt: Tensor, a: Tensor, p: Tensor, q: Tensor, b: Tensor) -> DiscreteNPLR:
    """Discretize A = diag(a) - p qᵀ by the bilinear rule (S4, arXiv 2111.00396, appendix C.2).

    By the Sherman-Morrison identity the inverse of I - dt/2 A is diagonal plus rank one. Therefore Ā has that form too,
    and a recurrence step costs O(N). Inner products are over both halves of the conjugate pairs, which gives 2 Re.

    Args:
        dt: step sizes, real (H, 1).
        a: diagonal, complex (H, N).
        p, q: vectors of the low-rank term, complex (H, N).
        b: input vector, complex (H, N).
    """
    half = dt / 2
    d = torch.reciprocal(1 - half * a)
    q_d, p_d = q * d, p * d
    scale = dt / (1 + dt * (q_d * p).real.sum(-1, keepdim=True))  # dt · (1 + dt/2 · 2 Re q d p)⁻¹
    u = scale * p_d
    b_bar = dt * (d * b - u * (q_d * b).real.sum(-1, keepdim=True))
    return DiscreteNPLR(a=2 * d - 1, u=u, v=q_d, b=b_bar)


def real_vector(x: Tensor) -> Tensor:
    """Convert complex (..., N) to real (..., 2N): real parts, then imaginary parts."""
    return torch.cat([x.real, x.imag], dim=-1)


def real_output(c: Tensor) -> Tensor:
    """Convert an output vector c, complex (..., N), to a real row (..., 2N): row · real_vector(x) = 2 Re(c · x)."""
    return torch.cat([2 * c.real, -2 * c.imag], dim=-1)


def real_matrix(system: DiscreteNPLR) -> Tensor:
    """Return Ā as a dense real matrix (H, 2N, 2N) that acts on ``real_vector(x)``.

    If A is diag(a) - p p* and no eigenvalue a has a positive real part, Ā is a contraction in this basis, so its powers
    do not grow.
    """
    rank_one = real_vector(system.u).unsqueeze(-1) * real_output(system.v).unsqueeze(-2)  # (H, 2N, 2N)
    re, im = torch.diag_embed(system.a.real), torch.diag_embed(system.a.imag)
    diagonal = torch.cat([torch.cat([re, -im], dim=-1), torch.cat([im, re], dim=-1)], dim=-2)
    return diagonal - rank_one
