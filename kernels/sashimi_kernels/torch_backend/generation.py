"""Fast implementations in plain PyTorch, on any device.

Both kernels split the position l = T·a + b, with T near √L, and become one batched matrix product: nothing of the size
H·N·L is ever stored, in the forward or in the backward pass.
"""

import math

import torch
from torch import Tensor

from sashimi_kernels.discretization import (
    DiscreteDiagonal,
    discretize_nplr,
    real_matrix,
    real_output,
    real_vector,
)


def diagonal_kernel(log_a: Tensor, coefficients: Tensor, length: int) -> Tensor:
    """K = (C ∘ exp(T·a·log_a))ᵀ exp(b·log_a): 2√L exponentials a state, the sum over n a matrix product."""
    dtype = coefficients.dtype
    block = _block_length(length)
    n_blocks = -(-length // block)
    coarse = _exponentials(block * log_a, n_blocks, dtype)  # (H, N, n_blocks)
    fine = _exponentials(log_a, block, dtype)  # (H, N, block)
    left = coefficients.unsqueeze(-1) * coarse  # (M, H, N, n_blocks)
    left = torch.cat([2 * left.real, -2 * left.imag], dim=-2)  # (M, H, 2N, n_blocks)
    right = torch.cat([fine.real, fine.imag], dim=-2)  # (H, 2N, block)
    return (left.transpose(-1, -2) @ right).flatten(-2)[..., :length]


def diagonal_state(system: DiscreteDiagonal, u: Tensor, state: Tensor | None = None) -> Tensor:
    """Two matrix products: inside blocks of T samples, then over the blocks."""
    length = u.shape[-1]
    dtype = torch.complex128 if u.dtype == torch.float64 else torch.complex64
    block = _block_length(length)
    n_blocks = -(-length // block)
    # Zeros in front of a system at rest change nothing, so the first block may be short.
    blocks = torch.nn.functional.pad(u, (n_blocks * block - length, 0)).unflatten(-1, (n_blocks, block))
    fine = torch.view_as_real(_exponentials(system.log_a, block, dtype).flip(-1))  # (H, N, block, 2)
    inner = torch.einsum("bhat,hntr->bhnar", blocks, fine)  # (batch, H, N, n_blocks, 2)
    coarse = _exponentials(block * system.log_a, n_blocks, dtype).flip(-1)  # (H, N, n_blocks)
    x = (torch.view_as_complex(inner.contiguous()) * coarse).sum(-1) * system.b.to(dtype)
    if state is not None:
        x = x + torch.exp(length * system.log_a).to(dtype) * state
    return x


def nplr_kernel(
    dt: Tensor, a: Tensor, p: Tensor, q: Tensor, b: Tensor, c: Tensor, length: int, state: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Two-level Krylov form: K[T·a + b] = (C Ā^(Ta)) (Ā^b B̄), both factors by doubling, then one matrix product.

    The fine powers up to Ā^T are float64: they are few, and the coarse ones multiply whatever rounding they carry.
    """
    dtype = c.real.dtype
    system = discretize_nplr(dt, a, p, q, b)
    matrix = real_matrix(system)  # (H, 2N, 2N)
    block = _block_length(length)
    n_blocks = -(-length // block)
    columns, matrix_block = _powers(matrix, real_vector(system.b).unsqueeze(-1), block)  # (H, 2N, block)
    rows = real_output(c).transpose(0, 1).transpose(-1, -2)  # (H, 2N, M)
    rows, _ = _powers(matrix_block.to(dtype).transpose(-1, -2), rows, n_blocks)  # (H, 2N, n_blocks · M)
    rows = rows.unflatten(-1, (n_blocks, -1)).permute(0, 3, 2, 1)  # (H, M, n_blocks, 2N)
    kernel = (rows @ columns.to(dtype).unsqueeze(1)).flatten(-2)[..., :length].transpose(0, 1)  # (M, H, L)
    if state is None:
        return kernel, None
    first = matrix.to(dtype) @ real_vector(state).to(dtype).permute(1, 2, 0)  # (H, 2N, batch)
    columns, _ = _powers(matrix.to(dtype), first, block)
    columns = columns.unflatten(-1, (block, -1))  # (H, 2N, block, batch)
    response = torch.einsum("hman,hntb->bmhat", rows, columns).flatten(-2)
    return kernel, response[..., :length]


def nplr_state(
    dt: Tensor, a: Tensor, p: Tensor, q: Tensor, b: Tensor, u: Tensor, state: Tensor | None = None
) -> Tensor:
    """States of blocks of T samples in one matrix product, then summed pairwise up a tree.

    The powers of Ā are taken in float64: rounded to float32, Ā^L would be off by L roundings, and the state is kept.
    """
    length = u.shape[-1]
    system = discretize_nplr(dt, a, p, q, b)
    matrix = real_matrix(system)  # (H, 2N, 2N)
    block = _block_length(length)
    n_blocks = _power_of_two_above(-(-length // block))
    columns, advance = _powers(matrix, real_vector(system.b).unsqueeze(-1), block)  # (H, 2N, block)
    blocks = torch.nn.functional.pad(u, (n_blocks * block - length, 0)).unflatten(-1, (n_blocks, block))
    columns = columns.flip(-1).to(u.dtype)
    x = torch.einsum("bhat,hnt->hnab", blocks, columns).to(matrix.dtype)  # (H, 2N, n_blocks, batch)
    while x.shape[2] > 1:
        older, newer = x[:, :, 0::2], x[:, :, 1::2]
        x = (advance @ older.flatten(2)).view_as(older) + newer
        advance = advance @ advance
    x = x.squeeze(2)  # (H, 2N, batch)
    if state is not None:
        start = real_vector(state).to(matrix.dtype).permute(1, 2, 0)
        x = x + torch.linalg.matrix_power(matrix, length) @ start
    real, imag = x.permute(2, 0, 1).to(u.dtype).chunk(2, dim=-1)
    return torch.complex(real.contiguous(), imag.contiguous())


def _exponentials(log_a: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """exp(l · log_a) for l = 0 … count-1: (H, N) to (H, N, count).

    The phase is reduced modulo 2π before it is rounded to the working precision, where sines and cosines are cheap.
    """
    real_dtype = torch.float64 if dtype == torch.complex128 else torch.float32
    positions = torch.arange(count, device=log_a.device, dtype=log_a.real.dtype)
    exponent = log_a.unsqueeze(-1) * positions  # (H, N, count)
    turns = torch.round(exponent.imag.detach() / (2 * math.pi))
    phase = (exponent.imag - 2 * math.pi * turns).to(real_dtype)
    return torch.polar(torch.exp(exponent.real.to(real_dtype)), phase)


def _powers(matrix: Tensor, start: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """[start, M start, …, M^(count-1) start] side by side, and M^(the power of two at or above count).

    Args:
        matrix: (H, n, n). start: (H, n, m).

    Returns:
        (H, n, count · m) with the power as the slower index of the last axis, and (H, n, n).
    """
    powers, n = start, 1
    while n < count:
        powers = torch.cat([powers, matrix @ powers], dim=-1)
        matrix = matrix @ matrix
        n *= 2
    return powers[..., : count * start.shape[-1]], matrix


def _block_length(length: int) -> int:
    """The power of two nearest to √length."""
    return 2 ** max(0, round(math.log2(length) / 2))


def _power_of_two_above(n: int) -> int:
    return 1 << (n - 1).bit_length()
