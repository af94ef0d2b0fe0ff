"""Convolution with a diagonal state space in chunks, without an FFT."""

import torch
from torch import Tensor

from sashimi_kernels.backends import select_backend
from sashimi_kernels.discretization import DiscreteDiagonal
from sashimi_kernels.shapes import require_samples, require_shape


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
    """Convolve a signal with the kernels of a diagonal system, by matrix products over chunks.

    y[t] = skip · u[t] + Σ_j k[j] u[t-j] + Σ_j r[j] u[t+shift+j] + 2 Re(c Ā^(t+1) state) with the kernels
    k[l] = 2 Re Σ_n c Ā^l B̄ and r[l], which has ``reverse`` instead of c (S4D, arXiv 2206.11893, equation 7).

    Args:
        u: input, real (B, H, L): float32, float16, bfloat16 or, except on "triton", float64. Half precision applies to
            the samples only: sums are float32.
        system: Ā and B̄, complex (H, N). Use complex128 for log_a, see :func:`diagonal_kernel`.
        c: output vector, complex (H, N).
        skip: D of the state space, real (H,).
        reverse: output vector of the reverse direction, complex (H, N).
        shift: 1 if the reverse direction starts at the next sample (newer official code), 0 if both directions include
            the current sample (older official code).
        state: state before the first sample, complex (B, H, N); zero by default.
        backend: "auto", "torch", "triton" or "reference".

    Returns:
        y, real (B, H, L) in the dtype of ``u``, and the state after the last sample, complex (B, H, N), or None with a
        reverse direction.

    Raises:
        ValueError: both ``reverse`` and ``state`` are given, ``shift`` is neither 0 nor 1, the shapes do not match, or
            L is 0.
        BackendUnavailableError: the backend cannot run.
    """
    if reverse is not None and state is not None:
        raise ValueError("a layer with a reverse direction has no initial state: give reverse or state, not both")
    if shift not in (0, 1):
        raise ValueError(f"expected shift 0 (reverse from this sample) or 1 (from the next sample), not {shift}")
    _require_shapes(u, system, c, skip, reverse, state)
    module = select_backend(backend, u.device, "chunked_convolution", u.dtype, u.shape[-1])
    # Half precision is not accurate enough for the states, for B̄ and for C.
    with torch.autocast(u.device.type, enabled=False):
        return module.chunked_convolution(u, system, c, skip, reverse, shift, state)


def _require_shapes(
    u: Tensor, system: DiscreteDiagonal, c: Tensor, skip: Tensor | None, reverse: Tensor | None, state: Tensor | None
) -> None:
    n_features, n_states = system.b.shape
    require_shape("u", u, u.shape[0], n_features, u.shape[-1])
    require_samples(u.shape[-1])
    for name, x in (("log_a", system.log_a), ("c", c), ("reverse", reverse)):
        if x is not None:
            require_shape(name, x, n_features, n_states)
    if skip is not None:
        require_shape("skip", skip, n_features)
    if state is not None:
        require_shape("state", state, u.shape[0], n_features, n_states)
