"""Initial state matrices: HiPPO-LegS in its normal-plus-low-rank form, and the diagonal ones of S4D.

All are returned as half of the conjugate pairs, the half with non-negative imaginary parts.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor


class InitialSystem(NamedTuple):
    """A = diag(a) - p p*, input vector b: complex128 (N,) with N half of the state size."""

    a: Tensor
    p: Tensor
    b: Tensor


def initial_system(name: str, n_state: int, parameterization: str) -> InitialSystem:
    """The initial state matrix called ``name``.

    Args:
        name: "legs" (HiPPO-LegS; for "diag" its normal part alone, S4D-LegS), "lin" or "inv" (S4D, arXiv 2206.11893,
            section 4).
        n_state: state size, both halves of the conjugate pairs; even.
        parameterization: "nplr" or "diag".

    Raises:
        ValueError: an odd ``n_state``, or a name that this parameterization does not have.
    """
    if n_state < 2 or n_state % 2:
        raise ValueError(f"n_state must be even and at least 2, got {n_state}")
    names = ("legs",) if parameterization == "nplr" else ("legs", "lin", "inv")
    if name not in names:
        raise ValueError(f"initialization {name!r} does not exist for {parameterization!r}: use one of {names}")
    if name == "legs":
        return _legs(n_state)
    n = torch.arange(n_state // 2, dtype=torch.float64)
    imag = math.pi * n if name == "lin" else n_state / math.pi * (n_state / (2 * n + 1) - 1)
    a = torch.complex(torch.full_like(imag, -0.5), imag)
    return InitialSystem(a, torch.zeros_like(a), torch.ones_like(a))


def _legs(n_state: int) -> InitialSystem:
    """HiPPO-LegS: A + p pᵀ is -1/2 I plus a skew matrix, so one Hermitian eigendecomposition diagonalizes it.

    S4 (arXiv 2111.00396), theorem 1 and appendix C.1: A[n,k] = -√(2n+1)√(2k+1) for n > k, -(n+1) for n = k;
    b[n] = √(2n+1); p[n] = √(n + 1/2).
    """
    n = torch.arange(n_state, dtype=torch.float64)
    b = torch.sqrt(2 * n + 1)
    p = torch.sqrt(n + 0.5)
    a = -torch.tril(torch.outer(b, b), diagonal=-1) - torch.diag(n + 1)
    normal = a + torch.outer(p, p)
    imag, vectors = torch.linalg.eigh(-1j * (normal - normal.T) / 2)
    half = imag > 0
    vectors = vectors[:, half]
    real = torch.diagonal(normal).mean().expand(n_state // 2)
    project = vectors.conj().T
    return InitialSystem(torch.complex(real, imag[half]), project @ p.to(project), project @ b.to(project))
