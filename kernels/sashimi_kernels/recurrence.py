"""Recurrence steps of state spaces, for generation sample by sample."""

from torch import Tensor

from sashimi_kernels.backends import select_backend
from sashimi_kernels.discretization import DiscreteNPLR
from sashimi_kernels.shapes import require_shape


def diagonal_step(
    u: Tensor,
    state: Tensor,
    a: Tensor,
    b: Tensor,
    c: Tensor,
    skip: Tensor,
    gelu: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Run one recurrence step of a diagonal system (S4D, arXiv 2206.11893).

    x = a · state + b · u and y = 2 Re Σ_n c · x + skip · u.

    Args:
        u: input sample of each feature, real (B, H): float32, float16, bfloat16 or, except on "triton", float64.
        state: state before the sample, complex (B, H, N).
        a, b: discrete eigenvalues Ā and input vector B̄, complex (H, N).
        c: output vectors, complex (M, H, N).
        skip: D, real (M, H).
        gelu: apply the exact GELU to y.
        backend: "auto", "torch", "triton" or "reference".

    Returns:
        y, real (B, M, H) in the dtype of ``u``, and the state x after the sample, complex (B, H, N).

    Raises:
        BackendUnavailableError: the backend cannot run.
        ValueError: the shapes do not match.
    """
    _require_shapes(u, state, c, skip, {"a": a, "b": b})
    module = select_backend(backend, u.device, "diagonal_step", u.dtype)
    return module.diagonal_step(u, state, a, b, c, skip, gelu)


def nplr_step(
    u: Tensor,
    state: Tensor,
    system: DiscreteNPLR,
    c: Tensor,
    skip: Tensor,
    gelu: bool = False,
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Run one recurrence step of a diagonal-plus-rank-one system, O(N) per feature.

    x = a · state - system.u · 2 Re Σ_n v · state + b · u, where a, v and b are those of ``system``, complex (H, N), and
    y is that of :func:`diagonal_step`. The other arguments, the results and the errors are also those of
    :func:`diagonal_step`.
    """
    _require_shapes(u, state, c, skip, system._asdict())
    module = select_backend(backend, u.device, "nplr_step", u.dtype)
    return module.nplr_step(u, state, system, c, skip, gelu)


def _require_shapes(u: Tensor, state: Tensor, c: Tensor, skip: Tensor, parameters: dict[str, Tensor]) -> None:
    n_outputs, n_features, n_states = c.shape
    require_shape("u", u, u.shape[0], n_features)
    require_shape("state", state, u.shape[0], n_features, n_states)
    require_shape("skip", skip, n_outputs, n_features)
    for name, parameter in parameters.items():
        require_shape(name, parameter, n_features, n_states)
