"""Initial state matrices: HiPPO-LegS in normal-plus-low-rank form, and the diagonal matrices of S4D.

States come in conjugate pairs. Only the member of each pair with the non-negative imaginary part is returned.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

INITIALIZATIONS = {"nplr": ("legs",), "diag": ("legs", "lin", "inv")}
"""Names of the initializations of each parameterization."""

_OFFICIAL_NAMES = {"diag-legs": "legs", "diag-lin": "lin", "diag-linear": "lin", "diag-inv": "inv"}
_UNSUPPORTED = {
    "legt": "its low-rank term has rank 2, and only rank 1 is implemented",
    "lagt": "only HiPPO-LegS is implemented, the measure that S4 and SaShiMi use",
    "glagt": "only HiPPO-LegS is implemented, the measure that S4 and SaShiMi use",
    "fourier": "only HiPPO-LegS is implemented, the measure that S4 and SaShiMi use",
    "fout": "only HiPPO-LegS is implemented, the measure that S4 and SaShiMi use",
    "hippo": "it combines 'legs' and 'fourier', and 'fourier' is not implemented",
    "diag": "combinations of initializations are not implemented",
    "all": "combinations of initializations are not implemented",
    "diag-real": "its eigenvalues are real, and states are stored as conjugate pairs",
    "diag-inv2": "only the variants that S4D recommends are implemented",
    "diag-quad": "only the variants that S4D recommends are implemented",
}


class InitialSystem(NamedTuple):
    """State matrix diag(a) - p p* and input vector b, complex128 (N,), where N is half of the state size."""

    a: Tensor
    p: Tensor
    b: Tensor


def initial_system(name: str, n_state: int, parameterization: str) -> InitialSystem:
    """Return the initial state matrix called ``name``, on the CPU.

    Args:
        name: "legs" (HiPPO-LegS; with "diag" its normal part only, S4D-LegS), "lin" or "inv" (S4D, arXiv 2206.11893,
            section 4).
        n_state: state size, counting both halves of the conjugate pairs; even.
        parameterization: "nplr" or "diag"; p is zero for "lin" and "inv", and not used by "diag".

    Raises:
        ValueError: ``n_state`` is odd, or the parameterization has no initialization of this name.
    """
    if n_state < 2 or n_state % 2:
        raise ValueError(f"n_state must be even and at least 2, got {n_state}")
    names = INITIALIZATIONS[parameterization]
    if name not in names:
        raise ValueError(
            f"initialization {name!r} does not exist for {parameterization!r}{_reason(name)}: use one of {names}"
        )
    with torch.device("cpu"):  # the default device may be "meta", which has no values
        if name == "legs":
            return _legs(n_state)
        n = torch.arange(n_state // 2, dtype=torch.float64)
        imag = math.pi * n if name == "lin" else n_state / math.pi * (n_state / (2 * n + 1) - 1)
        a = torch.complex(torch.full_like(imag, -0.5), imag)
        return InitialSystem(a, torch.zeros_like(a), torch.ones_like(a))


def _reason(name: str) -> str:
    if name in _OFFICIAL_NAMES:
        return f" (the official {name!r} is {_OFFICIAL_NAMES[name]!r} with parameterization 'diag')"
    return f" ({_UNSUPPORTED[name]})" if name in _UNSUPPORTED else ""


def _legs(n_state: int) -> InitialSystem:
    """Diagonalize HiPPO-LegS: A + p pᵀ is -1/2 I plus a skew matrix, so one Hermitian eigendecomposition suffices.

    S4 (arXiv 2111.00396), theorem 1 and appendix C.1: A[n,k] = -√(2n+1)√(2k+1) for n > k, -(n+1) for n = k;
    b[n] = √(2n+1); p[n] = √(n + 1/2).
    """
    n = torch.arange(n_state, dtype=torch.float64)
    b = torch.sqrt(2 * n + 1)
    p = torch.sqrt(n + 0.5)
    a = -torch.tril(torch.outer(b, b), diagonal=-1) - torch.diag(n + 1)
    normal = a + torch.outer(p, p)
    imag, vectors = torch.linalg.eigh(-1j * (normal - normal.T) / 2)
    # The eigenvalues ascend and come in pairs ±λ, so the upper half is positive.
    imag, vectors = imag[n_state // 2 :], vectors[:, n_state // 2 :]
    real = torch.diagonal(normal).mean().expand(n_state // 2)
    project = vectors.conj().T
    return InitialSystem(torch.complex(real, imag), project @ p.to(project), project @ b.to(project))
