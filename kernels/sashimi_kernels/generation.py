"""Convolution kernels and final states of state spaces."""

from torch import Tensor

from sashimi_kernels.backends import select_backend
from sashimi_kernels.discretization import DiscreteDiagonal
from sashimi_kernels.shapes import require_samples


def diagonal_kernel(log_a: Tensor, coefficients: Tensor, length: int, backend: str = "auto") -> Tensor:
    """Return the convolution kernel of a diagonal state space (S4D, arXiv 2206.11893, equation 7).

    K[m, h, l] = 2 Re Σ_n coefficients[m, h, n] · exp(l · log_a[h, n]) for l = 0 … length-1.

    Args:
        log_a: logarithm of the discrete eigenvalues, complex (H, N). Use complex128: the phases l · Im(log_a) grow
            with l, and float32 is accurate enough only for their remainder modulo 2π.
        coefficients: C · B̄ for each of the M outputs per feature, or C · x for the response to a state x; complex
            (M, H, N). The result has their precision, except on "triton", where it is float32.
        length: number of samples L.
        backend: "auto", "torch", "triton" or "reference".

    Returns:
        real (M, H, L).

    Raises:
        BackendUnavailableError: the backend cannot run.
        ValueError: the length is 0.
    """
    require_samples(length)
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
    """Return the convolution kernel of a normal-plus-low-rank state space (S4, arXiv 2111.00396).

    K[m, h, l] = C Āˡ B̄ for A = diag(a) - p qᵀ under the bilinear rule, over both halves of the conjugate pairs.

    Args:
        dt: step sizes, real (H, 1).
        a: diagonal, complex (H, N).
        p, q: vectors of the low-rank term, complex (H, N). q = conj(p) makes the system stable.
        b: input vector, complex (H, N).
        c: output vectors C, complex (M, H, N): not C (I - Ā^L), which the official checkpoints store. The result has
            their precision, except on "triton", where it is float32.
        length: number of samples L.
        state: initial states x, complex (B, H, N), or None.
        backend: "auto", "torch", "triton" or "reference".

    Returns:
        the kernel, real (M, H, L), and the responses C Ā^(l+1) x to ``state`` without an input, real (B, M, H, L), or
        None without ``state``.

    Raises:
        BackendUnavailableError: the backend cannot run.
        ValueError: the length is 0.
    """
    require_samples(length)
    module = select_backend(backend, a.device, "nplr_kernel", c.dtype, length)
    return module.nplr_kernel(dt, a, p, q, b, c, length, state)


def diagonal_state(system: DiscreteDiagonal, u: Tensor, state: Tensor | None = None, backend: str = "auto") -> Tensor:
    """Return the state of a diagonal system after an input: Ā^L state + Σ_t Ā^(L-1-t) B̄ u[t].

    Args:
        system: Ā and B̄, complex (H, N). Use complex128 for log_a, see :func:`diagonal_kernel`.
        u: input, real (B, H, L): float32, float16, bfloat16 or, except on "triton", float64.
        state: state before the first sample, complex (B, H, N); zero by default.
        backend: "auto", "torch", "triton" or "reference".

    Returns:
        complex (B, H, N).

    Raises:
        BackendUnavailableError: the backend cannot run.
        ValueError: L is 0.
    """
    require_samples(u.shape[-1])
    module = select_backend(backend, u.device, "diagonal_state", u.dtype, u.shape[-1], u.shape[0])
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
    """Return the state of a normal-plus-low-rank system after an input.

    ``dt``, ``a``, ``p``, ``q`` and ``b`` are those of :func:`nplr_kernel`; ``u``, ``state``, the result and the errors
    are those of :func:`diagonal_state`. "triton" supports up to 512 states N per feature.
    """
    require_samples(u.shape[-1])
    module = select_backend(backend, u.device, "nplr_state", u.dtype, u.shape[-1], u.shape[0])
    return module.nplr_state(dt, a, p, q, b, u, state)
