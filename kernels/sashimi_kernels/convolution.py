"""The convolution of a diagonal state space in chunks, without an FFT."""

import torch
from torch import Tensor

from sashimi_kernels.backends import select_backend
from sashimi_kernels.discretization import DiscreteDiagonal
from sashimi_kernels.shapes import require_shape


def chunked_convolution(
    u: Tensor,
    system: DiscreteDiagonal,
    c: Tensor,
    skip: Tensor | None = None,
    reverse: Tensor | None = None,
    shift: int = 1,
    state: Tensor | None = None,
    backend: str = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Convolve with the kernels of a diagonal system in chunks, by matrix products alone, from and to a state.

    y[t] = skip · u[t] + Σ_j k[j] u[t-j] + Σ_j r[j] u[t+shift+j] + 2 Re(c Ā^(t+1) state) with the kernels
    k[l] = 2 Re Σ_n c Ā^l B̄ and, with ``reverse`` in the place of c, r[l] (S4D, arXiv 2206.11893, equation 7).

    Args:
        u: input, real (batch, H, L), float32, float16 or bfloat16 (float64 too unless by "triton"). Half precision is
            that of the samples: sums are float32.
        system: Ā and B̄. Give log_a in complex128: see :func:`diagonal_kernel`.
        c: output vector, complex (H, N).
        skip: D of the state space, real (H,).
        reverse: output vector of the reverse direction, complex (H, N).
        shift: 1 when the reverse direction starts at the next sample (newer official code), 0 when both directions
            include the present one (older official code).
        state: state before the first sample, complex (batch, H, N); zero if not given.
        backend: "auto", "torch", "triton" or "reference".

    Returns:
        y, real (batch, H, L) in the dtype of ``u``, and the state after the last sample, complex (batch, H, N), or None
        with a reverse direction.

    Raises:
        ValueError: both ``reverse`` and ``state`` are given, ``shift`` is neither 0 nor 1, or shapes do not fit.
        BackendUnavailableError: the backend cannot run.
    """
    if reverse is not None and state is not None:
        raise ValueError("a layer with a reverse direction has no state to start from: give reverse or state, not both")
    if shift not in (0, 1):
        raise ValueError(f"the reverse direction starts at this sample (shift 0) or the next (shift 1), not {shift}")
    _require_shapes(u, system, c, skip, reverse, state)
    module = select_backend(backend, u.device, "chunked_convolution", u.dtype, u.shape[-1])
    # Half precision has too few bits for the states and for the vectors that make them.
    with torch.autocast(u.device.type, enabled=False):
        return module.chunked_convolution(u, system, c, skip, reverse, shift, state)


def _require_shapes(
    u: Tensor, system: DiscreteDiagonal, c: Tensor, skip: Tensor | None, reverse: Tensor | None, state: Tensor | None
) -> None:
    n_features, n_states = system.b.shape
    require_shape("u", u, u.shape[0], n_features, u.shape[-1])
    for name, x in (("log_a", system.log_a), ("c", c), ("reverse", reverse)):
        if x is not None:
            require_shape(name, x, n_features, n_states)
    if skip is not None:
        require_shape("skip", skip, n_features)
    if state is not None:
        require_shape("state", state, u.shape[0], n_features, n_states)
