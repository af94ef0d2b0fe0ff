"""Matrices of a state space for chunks of samples, from few batched operations.

With x[j] = Ā^j B̄ and r[i] = C Ā^(i+1), as rows of n = 2N real numbers (see ``krylov``),

    forward direction   write[j] = x[T-1-j]     read[i] = r[i]
    reverse direction   write[j] = x[j]         read[i] = C' Ā^(T-i-shift)
    lags[l] = C Ā^l B̄ for l > 0, C' Ā^(-l-shift) B̄ for l < 0, and at lag 0 the sum of the terms there and D

A diagonal system has exponentials in the place of matrix powers. A normal-plus-low-rank system takes the powers M^(2^i)
of the dense matrix by squaring. They and the products with them are computed in the precision of the system, because
each squaring doubles the relative rounding error.
"""

import functools
from typing import Any

import torch
from torch import Tensor

from sashimi_kernels.chunks import CHUNK, ChunkOperators
from sashimi_kernels.derivatives import gradients_of
from sashimi_kernels.discretization import DiscreteDiagonal, DiscreteNPLR
from sashimi_kernels.torch_backend.generation import exponentials
from sashimi_kernels.torch_backend.krylov import as_output_row, as_row, dense_matrix, rotation


def chunk_operators(
    system: DiscreteDiagonal | DiscreteNPLR, c: Tensor, skip: Tensor | None, reverse: Tensor | None, shift: int
) -> ChunkOperators:
    """Return the operators in the real counterpart of the dtype of ``c``; ``step`` has the precision of ``system``."""
    dtype = c.real.dtype
    vectors = torch.stack([c] if reverse is None else [c, reverse], dim=1)  # (H, D, N)
    if isinstance(system, DiscreteDiagonal):
        columns, rows, advance, step = _diagonal(system, vectors, shift)
    else:
        columns, rows, advance, step = _low_rank(system, vectors, shift)
    columns, rows = columns.to(dtype), rows.to(dtype)
    kernels = as_output_row(vectors) @ columns.mT  # (H, D, T)
    write, read = columns.flip(1), rows[:, 0]
    if reverse is not None:
        write, read = torch.cat([write, columns], dim=-1), torch.cat([read, rows[:, 1].flip(1)], dim=-1)
    return ChunkOperators(
        _lags(kernels, skip, shift), write, read, advance.to(dtype), step if reverse is None else None
    )


def _diagonal(system: DiscreteDiagonal, vectors: Tensor, shift: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x (H, T, n), r (H, D, T, n), and the factors of a row of states over a chunk and a sample."""
    powers = exponentials(system.log_a, CHUNK + 1, vectors.dtype).transpose(1, 2)  # (H, T + 1, N)
    columns = as_row(powers[:, :CHUNK] * system.b.to(vectors.dtype).unsqueeze(1))
    starts = (1, 1 - shift)[: vectors.shape[1]]
    selected = torch.stack([powers[:, start : start + CHUNK] for start in starts], dim=1)  # (H, D, T, N)
    rows = as_output_row(selected * vectors.unsqueeze(2))
    advance, step = (rotation(torch.exp(count * system.log_a)) for count in (CHUNK, 1))
    return columns, rows, advance, step


def _low_rank(system: DiscreteNPLR, vectors: Tensor, shift: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x (H, T, n), r (H, D, T, n), and the factors of a row of states over a chunk and a sample."""
    step = dense_matrix(system)
    first = as_output_row(vectors).to(step.dtype)  # C, C'
    advanced = first @ step.mT
    if shift == 1 and vectors.shape[1] == 2:
        advanced = torch.cat([advanced[:, :1], first[:, 1:]], dim=1)
    columns, rows, advance = _Powers.apply(step, as_row(system.b).unsqueeze(1), advanced, CHUNK)
    return columns, rows.transpose(1, 2), advance, step


class _Powers(torch.autograd.Function):
    """x M^j and y (Mᵀ)^j for j = 0 … count-1, and M^count, by doubling.

    For M (H, n, n), x (H, 1, n) and y (H, D, n), the results have shapes (H, count, n), (H, count, D, n) and (H, n, n).
    The backward pass computes the powers again: saved, they would take ten times the memory of the operators.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, x: Tensor, y: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(matrix, x, y)
        ctx.count = count
        powers, columns, rows = _powers_in_place(matrix, x, y, count)
        return columns, rows, powers[-1]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        matrix, x, y = ctx.saved_tensors
        if torch.is_grad_enabled():  # in-place operations are not differentiable
            function = functools.partial(_differentiable_powers, count=ctx.count)
            return *gradients_of(function, (matrix, x, y), ctx.needs_input_grad[:3], gradients), None
        powers, columns, rows = _powers_in_place(matrix, x, y, ctx.count)
        dcolumns, drows = (x.clone(memory_format=torch.contiguous_format) for x in gradients[:2])
        dpower, size = gradients[2], ctx.count // 2
        for power in reversed(powers[:-1]):
            dpower = torch.baddbmm(dpower @ power.mT, power.mT, dpower)
            later, later_rows = dcolumns[:, size : 2 * size], drows[:, size : 2 * size].flatten(1, 2)
            dpower.baddbmm_(columns[:, :size].mT, later).baddbmm_(later_rows.mT, rows[:, :size].flatten(1, 2))
            dcolumns[:, :size].baddbmm_(later, power.mT)
            drows[:, :size].flatten(1, 2).baddbmm_(later_rows, power)
            size //= 2
        return dpower, dcolumns[:, :1], drows[:, 0], None


def _powers_in_place(matrix: Tensor, x: Tensor, y: Tensor, count: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return M, M², M⁴ … M^count and the two other results of :class:`_Powers`."""
    columns = x.new_empty(x.shape[0], count, x.shape[2])
    rows = y.new_empty(y.shape[0], count, *y.shape[1:])
    columns[:, :1], rows[:, 0] = x, y
    powers, size = [matrix], 1
    while size < count:
        torch.bmm(columns[:, :size], powers[-1], out=columns[:, size : 2 * size])
        earlier, later = rows[:, :size].flatten(1, 2), rows[:, size : 2 * size].flatten(1, 2)
        torch.bmm(earlier, powers[-1].mT, out=later)
        powers.append(powers[-1] @ powers[-1])
        size *= 2
    return powers, columns, rows


def _differentiable_powers(power: Tensor, x: Tensor, y: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the results of :class:`_Powers`."""
    rows = y.unsqueeze(1)
    while x.shape[1] < count:
        x = torch.cat([x, x @ power], dim=1)
        rows = torch.cat([rows, (rows.flatten(1, 2) @ power.mT).view_as(rows)], dim=1)
        power = power @ power
    return x, rows, power


def _lags(kernels: Tensor, skip: Tensor | None, shift: int) -> Tensor:
    """Return the kernels (H, D, T) and the skip connection as one kernel at the lags 1-T … T-1: (H, 2T-1)."""
    present, past = kernels[:, 0, :1], kernels[:, 0, 1:]
    if skip is not None:
        present = present + skip.to(kernels.dtype).unsqueeze(-1)
    if kernels.shape[1] == 1:
        return torch.cat([torch.zeros_like(past), present, past], dim=-1)
    if shift == 0:
        return torch.cat([kernels[:, 1, 1:].flip(-1), present + kernels[:, 1, :1], past], dim=-1)
    return torch.cat([kernels[:, 1, :-1].flip(-1), present, past], dim=-1)
