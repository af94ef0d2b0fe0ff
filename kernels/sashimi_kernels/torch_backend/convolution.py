"""Convolution with a state space in chunks, by batched matrix products instead of an FFT.

The input is divided into chunks U[c] of T samples. Inside a chunk the convolution is a product with a Toeplitz matrix,
which covers both directions and the skip connection. A state S summarizes the samples before the chunk. With a reverse
direction, a second state R summarizes the samples after it:

    S[c+1] = S[c] · advance + U[c] · write       R[c-1] = R[c] · advance + U[c] · write'
    Y[c] = U[c] · Toeplitz(lags) + S[c] · readᵀ + R[c] · read'ᵀ

The system is time-invariant, so the matrices are the same for every chunk (the time-invariant case of the state-space
duality of arXiv 2405.21060). The last chunk is padded with zeros.
"""

import torch
from torch import Tensor

from sashimi_kernels.chunks import ChunkOperators
from sashimi_kernels.torch_backend.krylov import as_row, from_row


def chunked_convolution(
    u: Tensor, operators: ChunkOperators, state: Tensor | None, with_final: bool
) -> tuple[Tensor, Tensor | None]:
    """Compute the states before the chunks (a matrix product and a tree), then the outputs (two matrix products)."""
    dtype = torch.float64 if u.dtype == torch.float64 else torch.float32
    lags, write, read, advance = (x.to(dtype) for x in operators[:4])
    n_batch, length, chunk, n = u.shape[0], u.shape[-1], write.shape[1], advance.shape[-1]
    n_chunks = -(-length // chunk)
    padded = torch.nn.functional.pad(u.to(dtype), (0, n_chunks * chunk - length))
    rows = padded.unflatten(-1, (n_chunks, chunk)).transpose(0, 1).flatten(1, 2)  # (H, B · chunks, T)
    sums = (rows @ write).unflatten(1, (n_batch, n_chunks))  # (H, B, chunks, D · n)
    zeros = sums.new_zeros(*sums.shape[:2], n)
    start = zeros if state is None else as_row(state.to(dtype.to_complex())).transpose(0, 1)
    states = _states_before_chunks(sums[..., :n], advance, start)  # (H, B, chunks, n)
    last = states[:, :, -1]
    if operators.n_directions == 2:
        later = _states_before_chunks(sums[..., n:].flip(2), advance, zeros).flip(2)
        states = torch.cat([states, later], dim=-1)
    toeplitz = lags.unfold(-1, chunk, 1).flip(1)  # (H, T, T): lag i-j in row j and column i
    y = torch.baddbmm(states.flatten(1, 2) @ read.mT, rows, toeplitz)
    y = y.unflatten(1, (n_batch, n_chunks)).flatten(2)[..., :length].transpose(0, 1).to(u.dtype)
    return y, state_after(u, operators, last) if with_final and operators.step is not None else None


def state_after(u: Tensor, operators: ChunkOperators, last: Tensor) -> Tensor:
    """Return the state after a signal, complex (B, H, N).

    Args:
        u: the signal, real (B, H, L).
        operators: operators with ``step``.
        last: state before the last chunk of the signal, real (H, B, n).
    """
    assert operators.step is not None
    length, chunk = u.shape[-1], operators.write.shape[1]
    rest = length - (length - 1) // chunk * chunk  # 1 … T
    factor = operators.advance if rest == chunk else torch.linalg.matrix_power(operators.step, rest)
    samples, write = u[..., length - rest :].transpose(0, 1), operators.write[:, chunk - rest :]
    return from_row(
        torch.baddbmm(samples.to(last.dtype) @ write.to(last.dtype), last, factor.to(last.dtype))
    ).transpose(0, 1)


def _states_before_chunks(sums: Tensor, advance: Tensor, start: Tensor) -> Tensor:
    """Return S[c] for every chunk, where S[c+1] = S[c] · advance + sums[c] and S[0] = start, by a pairwise tree.

    Args:
        sums: contributions of the chunks, real (H, B, chunks, n).
        advance: factor of a state over a chunk, real (H, n, n).
        start: state before the first chunk, real (H, B, n).

    Returns:
        real (H, B, chunks, n).
    """
    n_chunks = sums.shape[2]
    if n_chunks == 1:
        return start.unsqueeze(2)
    even, odd = torch.nn.functional.pad(sums, (0, 0, 0, n_chunks % 2)).unflatten(2, (-1, 2)).unbind(3)
    before_even = _states_before_chunks(_advanced(even, advance, odd), advance @ advance, start)
    before_odd = _advanced(before_even, advance, even)
    return torch.stack([before_even, before_odd], dim=3).flatten(2, 3)[:, :, :n_chunks]


def _advanced(states: Tensor, advance: Tensor, added: Tensor) -> Tensor:
    """Return states · advance + added for states (H, B, chunks, n)."""
    return torch.baddbmm(added.flatten(1, 2), states.flatten(1, 2), advance).view_as(states)
