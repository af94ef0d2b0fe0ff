"""Matrices of a state space for chunks of samples, from few batched operations.

With x[j] = Ā^j B̄ and r[i] = C Ā^(i+1), as rows of n = 2N real numbers (see ``krylov``),

    forward direction   write[j] = x[T-1-j]     read[i] = r[i]
    reverse direction   write[j] = x[j]         read[i] = C' Ā^(T-i-shift)
    lags[l] = C Ā^l B̄ for l > 0, C' Ā^(-l-shift) B̄ for l < 0, and at lag 0 the sum of the terms there and D

A diagonal system has exponentials in the place of matrix powers. A normal-plus-low-rank system takes the powers M^(2^i)
of the dense matrix by squaring. They and the products with them are computed in the precision of the system, because
each squaring doubles the relative rounding error.
"""

import torch
from torch import Tensor

from sashimi_kernels.chunks import CHUNK, ChunkOperators
from sashimi_kernels.discretization import DiscreteDiagonal, DiscreteNPLR
from sashimi_kernels.torch_backend.generation import exponentials
from sashimi_kernels.torch_backend.krylov import as_output_row, as_row, dense_matrix, rotation


def chunk_operators(
    system: DiscreteDiagonal | DiscreteNPLR, c: Tensor, skip: Tensor | None, reverse: Tensor | None, shift: int
) -> ChunkOperators:
    """Return the operators in the real counterpart of the dtype of ``c``; ``step`` has the precision of ``system``."""
    dtype = c.real.dtype
    vectors = torch.stack([c] if reverse is None else [c, reverse], dim=1)  # (H, D, N)
    powers = _diagonal if isinstance(system, DiscreteDiagonal) else _low_rank
    columns, rows, advance, step = powers(system, vectors, shift)
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
    power, columns = step, as_row(system.b).unsqueeze(1)
    first, *others = as_output_row(vectors).to(step.dtype).split(1, dim=1)
    rows = torch.cat([first @ step.mT] + [x if shift else x @ step.mT for x in others], dim=1).unsqueeze(2)
    for _ in range(CHUNK.bit_length() - 1):
        columns = torch.cat([columns, columns @ power], dim=1)
        rows = torch.cat([rows, (rows.flatten(1, 2) @ power.mT).view_as(rows)], dim=2)
        power = power @ power
    return columns, rows, power, step


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
