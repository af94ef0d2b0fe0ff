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
    length, chunk = u.shape[-1], write.shape[1]
    start = None if state is None else as_row(state.to(dtype.to_complex()))
    states, last = states_of_chunks(u.to(dtype), write, advance, start)
    toeplitz = lags.unfold(-1, chunk, 1).flip(1)  # (H, T, T): lag i-j in row j and column i
    y = torch.baddbmm(states.flatten(1, 2) @ read.mT, _chunks(u.to(dtype), chunk).flatten(1, 2), toeplitz)
    y = y.view(*states.shape[:3], chunk).flatten(2)[..., :length].transpose(0, 1).to(u.dtype)
    return y, state_after(u, operators, last) if with_final and operators.step is not None else None


def states_of_chunks(
    u: Tensor, write: Tensor, advance: Tensor, start: Tensor | None = None, adjoint: bool = False
) -> tuple[Tensor, Tensor]:
    """Return the states before all chunks, and one at an end.

    Args:
        u: signal, real (B, H, L).
        write: from the samples of a chunk to the states, real (H, T, D·n).
        advance: factor of a row of states over a chunk, real (H, n, n).
        start: state before the first chunk, real (B, H, n). In the adjoint: added to the state after the first of the
            reversed chunks.
        adjoint: reverse both directions.

    Returns:
        real (H, B, chunks, D·n), and the first direction's state before the last chunk, in the adjoint after the last
        of the reversed chunks, real (H, B, n).
    """
    n = advance.shape[-1]
    chunks = _chunks(u, write.shape[1])
    sums = (chunks.flatten(1, 2) @ write).view(*chunks.shape[:3], write.shape[-1])
    zeros, n_chunks = sums.new_zeros(*sums.shape[:2], n), sums.shape[2]
    start = zeros if start is None else start.transpose(0, 1)  # (H, B, n)
    found, end = [], zeros
    for direction, part in enumerate(sums.split(n, dim=-1)):
        down = (direction == 1) != adjoint
        part = part.flip(2) if down else part
        if adjoint:  # with one more chunk, before which is the state after the others
            first = part[:, :, :1] + (zeros if direction else start).unsqueeze(2)
            part = torch.cat([first, part[:, :, 1:], zeros.unsqueeze(2)], dim=2)
        states = _states_before_chunks(part, advance, zeros if adjoint or direction else start)
        end = end if direction else states[:, :, -1]
        states = states[:, :, :n_chunks]
        found.append(states.flip(2) if down else states)
    return torch.cat(found, dim=-1), end


def _chunks(u: Tensor, chunk: int) -> Tensor:
    """Divide a signal (B, H, L), padded with zeros, into chunks (H, B, chunks, T)."""
    n_chunks = -(-u.shape[-1] // chunk)
    padded = torch.nn.functional.pad(u, (0, n_chunks * chunk - u.shape[-1]))
    return padded.unflatten(-1, (n_chunks, chunk)).transpose(0, 1)


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
