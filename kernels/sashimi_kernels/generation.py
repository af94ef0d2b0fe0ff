"""Convolution kernels and final states of state spaces. Each operation hands on to the selected backend."""

from torch import Tensor

from sashimi_kernels.backends import select_backend
from sashimi_kernels.discretization import DiscreteDiagonal


def diagonal_kernel(log_a: Tensor, coefficients: Tensor, length: int, backend: str = "auto") -> Tensor:
    """Kernel K[m, h, l] = 2 Re Σ_n coefficients[m, h, n] · exp(l · log_a[h, n]) for l = 0 … length-1 (S4D, equation 7).

    Args:
        log_a: logarithm of the discrete eigenvalues, complex (H, N). Give it in complex128: the phases l · Im(log_a)
            grow with l, and only their remainder modulo 2π fits float32.
        coefficients: C · B̄ of every output channel, or C · x for the response to a state x; complex (M, H, N). Their
            precision is that of the result, float32 on "triton".
        length: number of samples L.
        backend: "auto", "torch", "triton" or "reference".

    Returns:
        real (M, H, L).

    Raises:
        BackendUnavailableError: the backend cannot run.
    """
    module = select_backend(backend, log_a.device, "diagonal_kernel", coefficients.dtype, length)
    return module.diagonal_kernel(log_a, coefficients, length)


def nplr_kernel(
    dt: Tensor,
    a: Tensor,
    p: Tensor,
    q: Tensor,
    b: Tensor,
    c: Tensor,
    length: int,
    state: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Kernel K[m, h, l] = C Āˡ B̄ of A = diag(a) - p qᵀ under the bilinear rule (S4, arXiv 2111.00396).

    Args:
        dt: steps, real (H, 1).
        a, p, q, b: complex (H, N). The paper's stable form has q = conj(p).
        c: complex (M, H, N), the true C: not the C (I - Ā^L) that the official checkpoints store. Its precision is
            that of the result, float32 on "triton".
        length: number of samples L.
        state: initial states, complex (batch, H, N), whose response is wanted too.
        backend: "auto", "torch", "triton" or "reference".

    Returns:
        the kernel, real (M, H, L), and the outputs that follow from ``state`` with no input, real (batch, M, H, L), or
        None.

    Raises:
        BackendUnavailableError: the backend cannot run.
    """
    module = select_backend(backend, a.device, "nplr_kernel", c.dtype, length)
    return module.nplr_kernel(dt, a, p, q, b, c, length, state)


def diagonal_state(system: DiscreteDiagonal, u: Tensor, state: Tensor | None = None, backend: str = "auto") -> Tensor:
    """State of a diagonal system after an input: Ā^L state + Σ_t Ā^(L-1-t) B̄ u[t].

    Args:
        system: discrete system, complex (H, N); give log_a in complex128, as in :func:`diagonal_kernel`.
        u: real (batch, H, L), float32, float16 or bfloat16 (float64 too unless on "triton").
        state: state before the first sample, complex (batch, H, N); None for rest.
        backend: "auto", "torch", "triton" or "reference".

    Returns:
        complex (batch, H, N), at least complex64.

    Raises:
        BackendUnavailableError: the backend cannot run.
    """
    module = select_backend(backend, u.device, "diagonal_state", u.dtype, u.shape[-1])
    return module.diagonal_state(system, u, state)


def nplr_state(
    dt: Tensor,
    a: Tensor,
    p: Tensor,
    q: Tensor,
    b: Tensor,
    u: Tensor,
    state: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """State of the system of :func:`nplr_kernel` after the input ``u``; all else is as in :func:`diagonal_state`.

    "triton" keeps at most 512 states N per feature.
    """
    module = select_backend(backend, u.device, "nplr_state", u.dtype, u.shape[-1])
    return module.nplr_state(dt, a, p, q, b, u, state)
