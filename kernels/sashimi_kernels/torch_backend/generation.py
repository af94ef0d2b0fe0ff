"""Convolution kernels and final states in plain PyTorch.

With the position l = T·a + b and T near √L, both kernels are computed as one batched matrix product. No tensor of size
H·N·L is stored, neither in the forward nor in the backward pass.
"""

import math
from typing import Any

import torch
from torch import Tensor

from sashimi_kernels.discretization import DiscreteDiagonal, DiscreteNPLR, discretize_nplr
from sashimi_kernels.torch_backend.krylov import (
    as_output_row,
    as_row,
    flush,
    from_row,
    krylov_columns,
    krylov_rows,
)


def diagonal_kernel(log_a: Tensor, coefficients: Tensor, length: int) -> Tensor:
    """Compute K = (C ∘ exp(T·a·log_a))ᵀ exp(b·log_a): 2√L exponentials per state and one matrix product over n."""
    dtype = coefficients.dtype
    block = _block_length(length)
    n_blocks = -(-length // block)
    coarse, fine = _coarse_and_fine(log_a, n_blocks, block, dtype)  # (H, N, n_blocks), (H, N, block)
    left = (2 * coefficients).unsqueeze(-1) * coarse  # (M, H, N, n_blocks)
    left = torch.cat([left.real, left.imag], dim=-2)  # (M, H, 2N, n_blocks)
    right = torch.cat([fine.real, -fine.imag], dim=-2)  # (H, 2N, block)
    return (left.transpose(-1, -2) @ right).flatten(-2)[..., :length]


def diagonal_state(system: DiscreteDiagonal, u: Tensor, state: Tensor | None = None) -> Tensor:
    """Compute the contributions of blocks of T samples, then their sum over the blocks."""
    dtype = torch.complex128 if u.dtype == torch.float64 else torch.complex64
    u, length = u.to(dtype.to_real()), u.shape[-1]
    block = _block_length(length)
    n_blocks = -(-length // block)
    # The first block may be shorter than T samples: leading zeros do not change a state of zero.
    blocks = torch.nn.functional.pad(u, (n_blocks * block - length, 0)).unflatten(-1, (n_blocks, block))
    coarse, fine = _coarse_and_fine(system.log_a, n_blocks, block, dtype)  # (H, N, n_blocks), (H, N, block)
    inner = torch.einsum("bhat,hntr->bhnar", blocks, torch.view_as_real(fine.flip(-1)))  # (B, H, N, n_blocks, 2)
    x = (torch.view_as_complex(inner.contiguous()) * coarse.flip(-1)).sum(-1) * system.b.to(dtype)
    if state is not None:
        x = x + torch.exp(length * system.log_a).to(dtype) * state
    return x


def nplr_kernel(
    dt: Tensor, a: Tensor, p: Tensor, q: Tensor, b: Tensor, c: Tensor, length: int, state: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Compute the two-level Krylov form K[T·a + b] = (C Ā^(Ta)) (Ā^b B̄) as one matrix product.

    The powers up to Ā^T are computed in float64. They are few, and the powers of Ā^T would multiply their rounding
    errors.
    """
    system, block = discretize_nplr(dt, a, p, q, b), _block_length(length)
    start = system.b.unsqueeze(1)  # (H, 1, N)
    if state is not None:
        start = torch.cat([start, _next_state(system, state).transpose(0, 1)], dim=1)  # (H, 1 + B, N)
    columns, advance = krylov_columns(system, start, block, c.real.dtype)  # (H, 1 + B, block, 2N)
    forward = advance.to(columns.dtype).transpose(1, 2)
    rows = krylov_rows(forward, as_output_row(c.transpose(0, 1)), -(-length // block))  # (H, n_blocks, M, 2N)
    samples = rows.transpose(1, 2).unsqueeze(1) @ columns.unsqueeze(2).mT  # (H, 1 + B, M, n_blocks, block)
    samples = samples.flatten(-2)[..., :length].permute(1, 2, 0, 3)
    return samples[0], None if state is None else samples[1:]


def nplr_state(
    dt: Tensor, a: Tensor, p: Tensor, q: Tensor, b: Tensor, u: Tensor, state: Tensor | None = None
) -> Tensor:
    """Compute the states after blocks of T samples in one matrix product, then combine them pairwise in a tree.

    The powers of Ā are computed in float64. In float32, Ā^L would accumulate L rounding errors.
    """
    dtype = torch.complex128 if u.dtype == torch.float64 else torch.complex64
    u, length = u.to(dtype.to_real()), u.shape[-1]
    system, block = discretize_nplr(dt, a, p, q, b), _block_length(length)
    n_blocks = _next_power_of_two(-(-length // block))
    columns, advance = krylov_columns(system, system.b.unsqueeze(1), block, u.dtype)  # (H, 1, block, 2N)
    blocks = torch.nn.functional.pad(u, (n_blocks * block - length, 0)).unflatten(-1, (n_blocks, block))
    x = (blocks.transpose(0, 1) @ columns.flip(2)).to(advance.dtype)  # (H, B, n_blocks, 2N)
    while x.shape[2] > 1:
        x = x[:, :, 0::2] @ advance.unsqueeze(1) + x[:, :, 1::2]
        advance = advance @ advance
    x = from_row(x.squeeze(2)).transpose(0, 1)  # (B, H, N)
    if state is not None:
        _, one = krylov_columns(system, system.b.unsqueeze(1), 1, u.dtype)
        start = as_row(state.to(x.dtype).transpose(0, 1))  # (H, B, 2N)
        x = x + from_row(start @ torch.linalg.matrix_power(one, length)).transpose(0, 1)
    return x.to(dtype)


def _next_state(system: DiscreteNPLR, state: Tensor) -> Tensor:
    """Return Ā x for states x (B, H, N)."""
    return system.a * state - system.u * 2 * (system.v * state).real.sum(-1, keepdim=True)


def _coarse_and_fine(log_a: Tensor, n_blocks: int, block: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return exp(block · i · log_a) for i < n_blocks and exp(j · log_a) for j < block."""
    if log_a.device.type == "cpu":  # operations on slices are slower
        return exponentials(block * log_a, n_blocks, dtype), exponentials(log_a, block, dtype)
    # Half of the launches.
    device, real = log_a.device, log_a.real.dtype
    starts = torch.arange(0, n_blocks * block, block, device=device, dtype=real)
    positions = torch.cat([starts, torch.arange(block, device=device, dtype=real)])
    coarse, fine = _Exponentials.apply(log_a, positions, dtype).split([n_blocks, block], dim=-1)
    return coarse, fine


def exponentials(log_a: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Return exp(l · log_a) for l = 0 … count-1: (H, N) to (H, N, count)."""
    positions = torch.arange(count, device=log_a.device, dtype=log_a.real.dtype)
    return _Exponentials.apply(log_a, positions, dtype)


class _Exponentials(torch.autograd.Function):
    """exp(l · log_a). The phase is reduced modulo 2π before it is rounded to the working precision.

    The derivative with respect to log_a is l times the result, so no intermediate tensor is saved.
    """

    @staticmethod
    def forward(ctx: Any, log_a: Tensor, positions: Tensor, dtype: torch.dtype) -> Tensor:
        real_dtype = torch.float64 if dtype == torch.complex128 else torch.float32
        phase = (log_a.imag / (2 * math.pi)).unsqueeze(-1) * positions  # in turns
        phase = (phase - torch.round(phase)).mul_(2 * math.pi).to(real_dtype)
        exponent = log_a.real.unsqueeze(-1) * positions
        result = torch.polar(flush(torch.exp(exponent.to(real_dtype))), phase)  # (H, N, count)
        ctx.save_for_backward(result, positions)
        ctx.log_dtype = log_a.dtype
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        result, positions = ctx.saved_tensors
        summed = (gradient * result.conj()) @ positions.to(result.dtype)
        return summed.to(ctx.log_dtype), None, None


def _block_length(length: int) -> int:
    """Return the power of two nearest to √length."""
    return 2 ** max(0, round(math.log2(length) / 2))


def _next_power_of_two(n: int) -> int:
    """Return the smallest power of two that is at least ``n``."""
    return 1 << (n - 1).bit_length()
