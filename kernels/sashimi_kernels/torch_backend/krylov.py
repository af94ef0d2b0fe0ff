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

    The backward pass runs the recurrence in reverse and computes the gradient of M in one product.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, matrix: Tensor, count: int) -> Tensor:
        powers = x.new_empty(count, *x.shape)
        powers[0] = x
        for following, power in zip(powers[1:], powers, strict=False):
            torch.bmm(power, matrix, out=following)
            flush(following)
        ctx.save_for_backward(powers, matrix)
        return powers

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        powers, matrix = ctx.saved_tensors
        adjoint = _adjoint_powers(gradient, matrix)  # (count, H, m, n)
        before, after = (x.transpose(0, 1).flatten(1, 2) for x in (powers[:-1], adjoint[1:]))
        return adjoint[0], before.mT @ after, None


def _adjoint_powers(gradient: Tensor, matrix: Tensor) -> Tensor:
    """Return a[i] = g[i] + a[i+1] Mᵀ for the gradients g, (count, H, m, n), computed from the last to the first."""
    if torch.is_grad_enabled():  # in-place operations are not differentiable
        later = [gradient[-1]]
        for earlier in reversed(gradient[:-1].unbind()):
            later.append(torch.baddbmm(earlier, later[-1], matrix.mT))
        return torch.stack(later[::-1])
    adjoint = gradient.clone(memory_format=torch.contiguous_format)
    for index in range(len(adjoint) - 1, 0, -1):
        torch.baddbmm(adjoint[index - 1], adjoint[index], matrix.mT, out=adjoint[index - 1])
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
    powers = _diagonal_powers(system.a, count + 1)  # (H, count + 1, N)
    inner = as_output_row(powers[:, :-1] * system.v.unsqueeze(1))  # v · D^t: (H, count, 2N)
    outer = as_row(powers[:, :-1] * system.u.unsqueeze(1))  # D^t u: (H, count, 2N)
    feedback = inner @ as_row(system.u).unsqueeze(-1)  # v · D^t u: (H, count, 1)
    lower = _toeplitz(feedback.squeeze(-1))  # S: (H, count, count)
    right = torch.cat([inner, inner @ as_row(start).transpose(1, 2)], dim=-1)  # (H, count, 2N + m)
    w = torch.linalg.solve_triangular(lower, right, upper=False, unitriangular=True)
    w_all, w_start = w[..., : inner.shape[-1]], w[..., inner.shape[-1] :]
    dense = torch.baddbmm(rotation(powers[:, -1]), w_all.transpose(1, 2), outer.flip(1), alpha=-1)
    diagonal_part = as_row(powers[:, :-1].unsqueeze(1) * start.unsqueeze(2))  # D^t x: (H, m, count, 2N)
    return diagonal_part - _toeplitz(w_start.transpose(1, 2)) @ outer.unsqueeze(1), dense


def _diagonal_powers(a: Tensor, count: int) -> Tensor:
    """Return a^0 … a^(count-1): (H, N) to (H, count, N)."""
    powers, factor = torch.stack([torch.ones_like(a), a], dim=1), (a * a).unsqueeze(1)
    while powers.shape[1] < count:
        powers = torch.cat([powers, powers * factor], dim=1)
        factor = factor * factor
    return powers[:, :count]


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
