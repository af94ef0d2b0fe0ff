"""Convolution with a state space in chunks, without an FFT."""

import torch
from torch import Tensor

from sashimi_kernels.backends import select_backend
from sashimi_kernels.chunks import ChunkOperators
from sashimi_kernels.discretization import DiscreteDiagonal, DiscreteNPLR
from sashimi_kernels.shapes import require_samples, require_shape


def chunk_operators(
    system: DiscreteDiagonal | DiscreteNPLR,
    c: Tensor,
    skip: Tensor | None = None,
    reverse: Tensor | None = None,
    shift: int = 1,
    backend: str = "auto",
) -> ChunkOperators:
    """Return the matrices of a state space for :func:`chunked_convolution`, differentiable in all arguments.

    They represent y[t] = skip · u[t] + Σ_j k[j] u[t-j] + Σ_j r[j] u[t+shift+j] with the kernels k[l] = 2 Re(c Ā^l B̄)
    and r[l], which has ``reverse`` instead of c (S4, arXiv 2111.00396, equation 5). The features of several layers can
    be concatenated; :meth:`ChunkOperators.of` selects those of one layer.

    Args:
        system: Ā and B̄ of a diagonal or normal-plus-low-rank system, complex (H, N). Use complex128: the powers of Ā
            multiply rounding errors.
        c: output vector, complex (H, N). The operators have its precision, except on "triton", where they are float32.
        skip: D of the state space, real (H,).
        reverse: output vector of the reverse direction, complex (H, N).
        shift: 1 if the reverse direction starts at the next sample (newer official code), 0 if both directions include
            the current sample (older official code).
        backend: "auto", "torch", "triton" (up to 128 states) or "reference".

    Raises:
        BackendUnavailableError: the backend cannot run.
        ValueError: ``shift`` is neither 0 nor 1, or the shapes do not match.
    """
    if shift not in (0, 1):
        raise ValueError(f"expected shift 0 (reverse from this sample) or 1 (from the next sample), not {shift}")
    n_features, n_states = system.b.shape
    for name, x in (*system._asdict().items(), ("c", c), ("reverse", reverse)):
        if x is not None:
            require_shape(name, x, n_features, n_states)
    if skip is not None:
        require_shape("skip", skip, n_features)
    module = select_backend(backend, c.device, "chunk_operators", c.dtype)
    with torch.autocast(c.device.type, enabled=False):
        return module.chunk_operators(system, c, skip, reverse, shift)


def chunked_convolution(
    u: Tensor,
    operators: ChunkOperators,
    state: Tensor | None = None,
    backend: str = "auto",
    *,
    with_final: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """Convolve a signal with the kernels of a state space, by matrix products over chunks.

    y is that of :func:`chunk_operators` plus 2 Re(c Ā^(t+1) state).

    Args:
        u: input, real (B, H, L): float32, float16, bfloat16 or, except on "triton", float64.
        operators: result of :func:`chunk_operators`. On "triton", half-precision signals round lags, write and read to
            their own dtype; sums and the recurrence over the chunks are float32.
        state: state before the first sample, complex (B, H, N); zero by default.
        backend: "auto", "torch", "triton" or "reference".
        with_final: False skips the computation of the final state.

    Returns:
        y, real (B, H, L) in the dtype of ``u``, and the state after the last sample, complex (B, H, N), or None with a
        reverse direction or without ``with_final``.

    Raises:
        ValueError: ``state`` is given for operators with a reverse direction, the shapes do not match, or L is 0.
        BackendUnavailableError: the backend cannot run.
    """
    n_features, n = operators.advance.shape[:2]
    if state is not None and operators.n_directions == 2:
        raise ValueError("a layer with a reverse direction has no initial state: give operators of one direction")
    require_shape("u", u, u.shape[0], n_features, u.shape[-1])
    require_samples(u.shape[-1])
    if state is not None:
        require_shape("state", state, u.shape[0], n_features, n // 2)
    module = select_backend(backend, u.device, "chunked_convolution", u.dtype, u.shape[-1], u.shape[0])
    # Half precision is not accurate enough for the states.
    with torch.autocast(u.device.type, enabled=False):
        return module.chunked_convolution(u, operators, state, with_final)
