"""One step of a state space: the operations that generate sample by sample. Each hands on to the selected backend."""

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
    """One step of a diagonal system: x = a state + b u and y = 2 Re Σ_n c x + skip u (S4D, arXiv 2206.11893).

    Args:
        u: input samples, real (batch, H), float32, float16 or bfloat16 (float64 too unless by "triton").
        state: states before the step, complex (batch, H, N).
        a, b: discrete eigenvalues Ā and input vector B̄, complex (H, N).
        c: output vectors, complex (M, H, N).
        skip: D, real (M, H).
        gelu: y = GELU(y), the exact one.
        backend: "auto", "torch", "triton" or "reference".

    Returns:
        y, real (batch, M, H) in the dtype of ``u``, and the states x after the step, complex (batch, H, N).

    Raises:
        BackendUnavailableError: the backend cannot run.
        ValueError: the shapes do not fit each other.
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
    """One step of a diagonal-plus-rank-one system, O(N) per feature: x = a state - system.u · 2 Re(v · state) + b u.

    Everything else is as in :func:`diagonal_step`.
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
