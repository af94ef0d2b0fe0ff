"""Kernel and final state of a diagonal state space: the Vandermonde matrix and its transpose as custom operations.

Inputs and outputs of a custom operation are real: a complex tensor has a last axis of 2. The gradients use the notation
of ``vandermonde``: E[n, l] = exp(l · log_a[n]), coefficients c, signal x, and g for the gradient of the output.
"""

from typing import Any

import torch
from torch import Tensor

from sashimi_kernels.derivatives import no_second_derivative
from sashimi_kernels.discretization import DiscreteDiagonal
from sashimi_kernels.triton_backend.vandermonde import evaluate, project


def diagonal_kernel(log_a: Tensor, coefficients: Tensor, length: int) -> Tensor:
    """Evaluate the Vandermonde product in two levels, with exponentials in registers."""
    coefficients = _real(coefficients.to(torch.complex64))
    return vandermonde_evaluate(coefficients, _real(log_a.to(torch.complex128)), length, False, torch.float32)


def diagonal_state(system: DiscreteDiagonal, u: Tensor, state: Tensor | None = None) -> Tensor:
    """Return B̄ times the transposed Vandermonde product of the reversed input, plus the decayed initial state."""
    sums = vandermonde_project(u, _real(system.log_a.to(torch.complex128)), True, False)
    x = torch.view_as_complex(sums[0]) * system.b.to(torch.complex64)
    if state is not None:
        x = x + torch.exp(u.shape[-1] * system.log_a).to(torch.complex64) * state.to(torch.complex64)
    return x


@torch.library.custom_op("sashimi_kernels::vandermonde_evaluate", mutates_args=())
def vandermonde_evaluate(coefficients: Tensor, log_a: Tensor, length: int, reverse: bool, dtype: torch.dtype) -> Tensor:
    """Return the result of :func:`evaluate` in a new tensor, (M, H, L)."""
    out = coefficients.new_empty((*coefficients.shape[:2], length), dtype=dtype)
    evaluate(coefficients, log_a, out, reverse)
    return out


@torch.library.custom_op("sashimi_kernels::vandermonde_project", mutates_args=())
def vandermonde_project(signal: Tensor, log_a: Tensor, reverse: bool, slopes: bool) -> Tensor:
    """Return the result of :func:`project`, (1 or 2, M, H, N, 2)."""
    return project(signal, log_a, reverse, slopes)


@vandermonde_evaluate.register_fake
def _(coefficients: Tensor, log_a: Tensor, length: int, reverse: bool, dtype: torch.dtype) -> Tensor:
    return coefficients.new_empty((*coefficients.shape[:2], length), dtype=dtype)


@vandermonde_project.register_fake
def _(signal: Tensor, log_a: Tensor, reverse: bool, slopes: bool) -> Tensor:
    return signal.new_empty((1 + slopes, *signal.shape[:2], log_a.shape[1], 2), dtype=torch.float32)


def _keep_evaluate(ctx: Any, inputs: tuple, output: Tensor) -> None:
    coefficients, log_a, _, ctx.reverse, _ = inputs
    ctx.save_for_backward(coefficients, log_a)


def _keep_project(ctx: Any, inputs: tuple, output: Tensor) -> None:
    signal, log_a, ctx.reverse, ctx.slopes = inputs
    ctx.save_for_backward(signal, log_a)


def _evaluate_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None, None, None]:
    """Return the gradient 2 Σ_l g[l] E[l]* of c, and that of log_a: 2 Σ_l l g[l] (c E[l])*, summed over the outputs."""
    coefficients, log_a = ctx.saved_tensors
    slopes = ctx.needs_input_grad[1]
    sums = 2 * _complex(vandermonde_project(gradient, log_a, ctx.reverse, slopes)).conj()  # (1 or 2, M, H, N)
    dlog_a = _real((_complex(coefficients).conj() * sums[1]).sum(0).to(torch.complex128)) if slopes else None
    return _real(sums[0]), dlog_a, None, None, None


def _project_backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
    """Return the gradient Re Σ_n g* E[l] of x[l], and that of log_a: g (Σ_l l x[l] E[l])*, summed over the rows."""
    if ctx.slopes:
        no_second_derivative("diagonal_kernel and diagonal_state")(ctx, gradient)
    signal, log_a = ctx.saved_tensors
    g = _complex(gradient[0])  # (M, H, N)
    dsignal = dlog_a = None
    if ctx.needs_input_grad[0]:
        half = _real(g.conj() / 2)
        dsignal = vandermonde_evaluate(half, log_a, signal.shape[-1], ctx.reverse, signal.dtype)
    if ctx.needs_input_grad[1]:
        slopes = _complex(vandermonde_project(signal, log_a, ctx.reverse, True)[1])
        dlog_a = _real((g * slopes.conj()).sum(0).to(torch.complex128))
    return dsignal, dlog_a, None, None


vandermonde_evaluate.register_autograd(_evaluate_backward, setup_context=_keep_evaluate)
vandermonde_project.register_autograd(_project_backward, setup_context=_keep_project)


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x.resolve_conj())


def _complex(x: Tensor) -> Tensor:
    return torch.view_as_complex(x.contiguous())
