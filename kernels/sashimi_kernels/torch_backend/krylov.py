"""Powers of a diagonal-plus-rank-one matrix, and their products with vectors, from few matrix products.

With D = diag(a), one recurrence step is x[t+1] = Ā x[t] = D x[t] - u w[t] with the scalar w[t] = v · x[t] (over both
halves of the conjugate pairs), so the first T steps need no dense matrix. With S[t, s] = v · D^(t-1-s) u below the
diagonal,

    (I + S) w = [v · D^t x[0]]    and    x[t] = D^t x[0] - Σ_{s<t} D^(t-1-s) u w[s].

T = 16 steps cost less than two squarings of the dense matrix and replace four of them. Higher powers are computed by
squaring Ā^T.

In this file, complex vectors of N states are real row vectors of 2N elements with interleaved real and imaginary parts
(``view_as_real``).
"""

from typing import Any

import torch
from torch import Tensor

from sashimi_kernels.discretization import DiscreteNPLR

# Number of powers computed by the triangular system.
FIRST = 16
# Number of powers computed by doubling. The others follow group by group, which saves the highest squarings.
GROUP = 4


def krylov_columns(system: DiscreteNPLR, start: Tensor, count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return x, Ā x, …, Ā^(count-1) x for every x of ``start``, and Ā^count.

    Args:
        system: complex (H, N), complex128 for the accuracy of Ā^count.
        start: complex (H, m, N).
        count: a power of two.
        dtype: real dtype of the first result. Ā^count keeps the precision of ``system``, because its powers multiply
            rounding errors.

    Returns:
        real (H, m, count, 2N), and the transpose of Ā^count, real (H, 2N, 2N).
    """
    first = min(count, FIRST)
    columns, power = _first_powers(system, start, first)
    columns = _Repeat.apply(columns.to(dtype).flatten(1, 2), power.to(dtype), count // first).transpose(0, 1)
    columns = columns.unflatten(2, (-1, first)).transpose(1, 2).flatten(2, 3)
    while first < count:
        power, first = power @ power, 2 * first
    return columns, power


def krylov_rows(matrix: Tensor, start: Tensor, count: int) -> Tensor:
    """Return c, c M, …, c M^(count-1) for the rows c of ``start``, where M is ``matrix``.

    Args:
        matrix: real (H, n, n).
        start: real (H, m, n).
        count: number of powers.

    Returns:
        real (H, count, m, n).
    """
    n_rows, size = start.shape[1], 1
    while size < min(count, GROUP):
        start = torch.cat([start, start @ matrix], dim=1)
        matrix, size = matrix @ matrix, 2 * size
    rows = _Repeat.apply(start, matrix, -(-count // size)).transpose(0, 1)
    return rows.flatten(1, 2).unflatten(1, (-1, n_rows))[:, :count]


class _Repeat(torch.autograd.Function):
    """x, x M, …, x M^(count-1) for x (H, m, n) and M (H, n, n): (count, H, m, n).

    The backward pass runs the recurrence in reverse and computes the gradient of M in one product. On a CPU, both
    passes are loops of ``count`` steps, which take the fewest multiplications. On other devices they are loops of
    log₂(count) doublings, which take fewer launches.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, count: int) -> Tensor:
        if _steps_are_cheap(x):
            powers = x.new_empty(count, *x.shape)
            powers[0] = x
            for following, power in zip(powers[1:], powers, strict=False):
                torch.bmm(power, matrix, out=following)
                flush(following)
        else:
            powers = _doubled(x, matrix, count)
        ctx.save_for_backward(powers, matrix)
        return powers

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        powers, matrix = ctx.saved_tensors
        adjoint = _adjoint_powers(gradient, matrix)  # (count, H, m, n)
        return adjoint[0], _rows(powers[:-1]).mT @ _rows(adjoint[1:]), None


def _steps_are_cheap(x: Tensor) -> bool:
    return x.device.type == "cpu"


def _rows(powers: Tensor) -> Tensor:
    """Convert (count, H, m, n) to (H, count · m, n)."""
    return powers.transpose(0, 1).flatten(1, 2)


def _doubled(x: Tensor, matrix: Tensor, count: int) -> Tensor:
    """Return x, x M, …, (count, H, m, n), by doubling the number of known powers."""
    powers = x.new_empty(x.shape[0], count, *x.shape[1:]).transpose(0, 1)
    powers[0], known = x, 1
    while known < count:
        following = powers[known : 2 * known]
        torch.bmm(_rows(powers[: len(following)]), matrix, out=_rows(following))
        known *= 2
        matrix = matrix @ matrix if known < count else matrix
    return powers


def _adjoint_powers(gradient: Tensor, matrix: Tensor) -> Tensor:
    """Return a[i] = g[i] + a[i+1] Mᵀ for the gradients g, (count, H, m, n), computed from the last to the first."""
    if torch.is_grad_enabled():  # in-place operations are not differentiable
        later = [gradient[-1]]
        for earlier in reversed(gradient[:-1].unbind()):
            later.append(torch.baddbmm(earlier, later[-1], matrix.mT))
        return torch.stack(later[::-1])
    if _steps_are_cheap(gradient):
        adjoint = gradient.clone(memory_format=torch.contiguous_format)
        for index in range(len(adjoint) - 1, 0, -1):
            torch.baddbmm(adjoint[index - 1], adjoint[index], matrix.mT, out=adjoint[index - 1])
        return adjoint
    adjoint = gradient.transpose(0, 1).clone(memory_format=torch.contiguous_format).transpose(0, 1)
    distance = 1
    while distance < len(adjoint):  # a[i] holds the terms of g[i] … g[i + distance - 1]
        _rows(adjoint[:-distance]).add_(_rows(adjoint[distance:]) @ matrix.mT)
        distance *= 2
        matrix = matrix @ matrix if distance < len(adjoint) else matrix
    return adjoint


def flush(x: Tensor) -> Tensor:
    """Set elements of real ``x`` that are almost zero to zero, in place and without gradients.

    Otherwise decaying exponentials become denormal numbers, which some processors multiply fifty times more slowly.
    """
    return torch.ops.aten.hardshrink.out(x, 1e8 * torch.finfo(x.dtype).tiny, out=x)


def as_row(x: Tensor) -> Tensor:
    """Convert a complex state (..., N) to a real row (..., 2N)."""
    return torch.view_as_real(x.resolve_conj()).flatten(-2)


def as_output_row(c: Tensor) -> Tensor:
    """Convert an output vector c, complex (..., N), to a real row (..., 2N): row · as_row(x) = 2 Re(c · x)."""
    return 2 * as_row(c.conj())


def from_row(x: Tensor) -> Tensor:
    """Convert a real row (..., 2N) to a complex state (..., N)."""
    return torch.view_as_complex(x.unflatten(-1, (-1, 2)).contiguous())


def _first_powers(system: DiscreteNPLR, start: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the results of :func:`krylov_columns` for ``count`` <= 16, by the triangular system of this module."""
    powers, last = _DiagonalPowers.apply(system.a, count)  # (H, count, N), (H, N)
    inner = as_output_row(powers * system.v.unsqueeze(1))  # v · D^t: (H, count, 2N)
    outer = as_row(powers * system.u.unsqueeze(1))  # D^t u: (H, count, 2N)
    feedback = inner @ as_row(system.u).unsqueeze(-1)  # v · D^t u: (H, count, 1)
    lower = _toeplitz(feedback.squeeze(-1))  # S: (H, count, count)
    right = torch.cat([inner, inner @ as_row(start).transpose(1, 2)], dim=-1)  # (H, count, 2N + m)
    w = torch.linalg.solve_triangular(lower, right, upper=False, unitriangular=True)
    w_all, w_start = w.split([inner.shape[-1], start.shape[1]], dim=-1)
    dense = torch.baddbmm(rotation(last), w_all.transpose(1, 2), outer.flip(1), alpha=-1)
    diagonal_part = as_row(powers.unsqueeze(1) * start.unsqueeze(2))  # D^t x: (H, m, count, 2N)
    return diagonal_part - _toeplitz(w_start.transpose(1, 2)) @ outer.unsqueeze(1), dense


class _DiagonalPowers(torch.autograd.Function):
    """a^0 … a^(count-1), (H, count, N), and a^count, (H, N). The derivative of a^t is t a^(t-1), which is known."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, count: int) -> tuple[Tensor, Tensor]:
        powers = a.unsqueeze(1).repeat(1, count + 1, 1)
        powers[:, 0].fill_(1)
        powers = powers.cumprod(1)
        lower, last = powers[:, :-1].clone(), powers[:, -1].clone()
        ctx.save_for_backward(lower)
        return lower, last

    @staticmethod
    def backward(ctx: Any, d_lower: Tensor, d_last: Tensor) -> tuple[Tensor, None]:
        (lower,) = ctx.saved_tensors
        gradient = torch.cat([d_lower[:, 1:], d_last.unsqueeze(1)], dim=1)
        exponents = torch.arange(1, lower.shape[1] + 1, device=lower.device, dtype=lower.real.dtype).unsqueeze(-1)
        return (gradient * exponents * lower.conj()).sum(1), None


def _toeplitz(series: Tensor) -> Tensor:
    """Return the matrix T[t, s] = series[t - 1 - s], zero for s >= t: (..., count) to (..., count, count)."""
    count = series.shape[-1]
    padded = torch.nn.functional.pad(series.flip(-1), (0, count))  # series[i] at count - 1 - i
    return padded.unfold(-1, count, 1)[..., 1:, :].flip(-2)


def dense_matrix(system: DiscreteNPLR) -> Tensor:
    """Return Ā as a real matrix (H, 2N, 2N) that multiplies row vectors from the right."""
    return torch.baddbmm(
        rotation(system.a), as_output_row(system.v).unsqueeze(2), as_row(system.u).unsqueeze(1), alpha=-1
    )


def rotation(a: Tensor) -> Tensor:
    """Return multiplication by ``a`` (H, N) of row vectors as a real matrix (H, 2N, 2N)."""
    rows = torch.stack([torch.view_as_real(a), torch.view_as_real(a * 1j)], dim=-2)  # (H, N, 2, 2)
    return torch.diag_embed(rows.permute(0, 2, 3, 1), dim1=1, dim2=3).flatten(3).flatten(1, 2)
