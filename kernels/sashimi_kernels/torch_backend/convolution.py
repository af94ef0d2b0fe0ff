"""Convolution with a diagonal system in chunks, by batched matrix products instead of an FFT.

The input is divided into chunks U[c] of T samples. Inside a chunk the convolution is a product with a Toeplitz matrix,
which covers both directions and the skip connection. A state S summarizes the samples before the chunk. With a reverse
direction, which has its own output vector C', a second state R summarizes the samples after it:

    s[c] = Σ_j Ā^(T-1-j) B̄ U[c, j]     S[c+1] = Ā^T S[c] + s[c]
    r[c] = Σ_j Ā^j B̄ U[c, j]           R[c-1] = Ā^T R[c] + r[c]
    Y[c, i] = Σ_j lags[i-j] U[c, j] + 2 Re(C Ā^(i+1) S[c]) + 2 Re(C' Ā^(T-i-shift) R[c])

The system is time-invariant, so the matrices are the same for every chunk (the time-invariant case of the state-space
duality of arXiv 2405.21060). The last chunk is padded with zeros.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from sashimi_kernels.discretization import DiscreteDiagonal
from sashimi_kernels.torch_backend.generation import exponentials

# Chunk length T. A sample takes 2T operations in the Toeplitz product, and per direction 8N operations and 16N / T
# bytes of states. For N = 32 and both directions, T = 128 takes a fifth more operations than T = 64, but half the bytes
# of states: 8 bytes per sample, which is less than the traffic of the sample itself (two reads and one write).
CHUNK = 128


class ChunkOperators(NamedTuple):
    """Matrices of the convolution for a chunk of T samples. D is 2 with a reverse direction and 1 without.

    Args:
        lags: kernel at the lags 1-T … T-1, including the skip connection, real (H, 2T-1).
        write: contribution of each sample to the states, complex (H, T, D, N).
        read: each state contributes Re(conj(read) · state) to the samples; complex (H, T, D, N).
        powers: Ā^l for l = 0 … T, complex (H, T + 1, N).
    """

    lags: Tensor
    write: Tensor
    read: Tensor
    powers: Tensor

    def state_after(self, rest: Tensor, state: Tensor) -> Tensor:
        """Return the forward state after the samples ``rest``.

        Args:
            rest: up to T samples, real (B, H, l).
            state: state before these samples, complex (B, H, N).
        """
        length, chunk = rest.shape[-1], self.write.shape[1]
        write = torch.view_as_real(self.write[:, chunk - length :, 0])
        written = torch.einsum("bhl,hlnr->bhnr", rest, write).contiguous()
        return self.powers[:, length] * state + torch.view_as_complex(written)


def chunk_operators(
    system: DiscreteDiagonal,
    c: Tensor,
    skip: Tensor | None,
    reverse: Tensor | None,
    shift: int,
    chunk: int,
    dtype: torch.dtype,
) -> ChunkOperators:
    """Return the operators for chunks of ``chunk`` samples, in the complex ``dtype`` or the real counterpart."""
    b = system.b.to(dtype)
    vectors = torch.stack([c] if reverse is None else [c, reverse]).to(dtype)  # (D, H, N)
    powers = exponentials(system.log_a, chunk + 1, dtype).transpose(1, 2)
    kernels = 2 * torch.einsum("dhn,htn->dht", vectors * b, powers[:, :chunk]).real
    write_powers = [powers[:, :chunk].flip(1), powers[:, :chunk]]  # forward, reverse
    read_powers = [powers[:, 1:], powers[:, 1 - shift : chunk + 1 - shift].flip(1)]
    write = torch.stack(write_powers[: len(vectors)], dim=2) * b[:, None, None]
    read = torch.stack(read_powers[: len(vectors)], dim=2) * vectors.transpose(0, 1).unsqueeze(1)
    return ChunkOperators(_lags(kernels, skip, shift), write, 2 * read.conj(), powers)


def chunked_convolution(
    u: Tensor,
    system: DiscreteDiagonal,
    c: Tensor,
    skip: Tensor | None,
    reverse: Tensor | None,
    shift: int,
    state: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Compute the states before the chunks (a matrix product and a tree), then the outputs (two matrix products)."""
    real = torch.float64 if u.dtype == torch.float64 else torch.float32
    dtype = torch.complex128 if u.dtype == torch.float64 else torch.complex64
    n_batch, _, length = u.shape
    chunk = min(CHUNK, length)
    n_chunks = -(-length // chunk)
    operators = chunk_operators(system, c, skip, reverse, shift, chunk, dtype)
    write, read = _real(operators.write), _real(operators.read)  # (H, T, 2DN)
    padded = torch.nn.functional.pad(u.to(real), (0, n_chunks * chunk - length))
    rows = padded.unflatten(-1, (n_chunks, chunk)).transpose(0, 1).flatten(1, 2)  # (H, B · chunks, T)
    sums = (rows @ write).unflatten(-1, (*operators.write.shape[2:], 2)).unflatten(1, (n_batch, n_chunks))
    sums = torch.view_as_complex(sums).unbind(3)  # D times (H, B, chunks, N)
    decay = torch.exp(chunk * system.log_a)
    start = torch.zeros_like(sums[0][:, :, 0]) if state is None else state.to(dtype).transpose(0, 1)
    states = [states_before_chunks(sums[0], decay, start)]
    if reverse is not None:
        states.append(states_before_chunks(sums[1].flip(2), decay, start).flip(2))
    carried = torch.view_as_real(torch.stack(states, dim=3)).flatten(3).flatten(1, 2)  # (H, B · chunks, 2DN)
    toeplitz = operators.lags.unfold(-1, chunk, 1).flip(1)  # (H, T, T): lag i-j in row j and column i
    y = torch.baddbmm(carried @ read.mT, rows, toeplitz)
    y = y.unflatten(1, (n_batch, n_chunks)).flatten(2)[..., :length].transpose(0, 1).to(u.dtype)
    if reverse is not None:
        return y, None
    rest = padded[..., (n_chunks - 1) * chunk : length]
    return y, operators.state_after(rest, states[0][:, :, -1].transpose(0, 1))


def states_before_chunks(sums: Tensor, decay: Tensor, start: Tensor) -> Tensor:
    """Return S[c] for every chunk, where S[c+1] = decay · S[c] + sums[c] and S[0] = start, by a pairwise tree.

    Args:
        sums: contributions of the chunks, complex (H, B, chunks, N).
        decay: factor of a state over a chunk, complex (H, N). Its powers have the same precision.
        start: state before the first chunk, complex (H, B, N).

    Returns:
        complex (H, B, chunks, N).
    """
    n_chunks = sums.shape[2]
    if n_chunks == 1:
        return start.unsqueeze(2)
    factor = decay.to(sums.dtype)[:, None, None]  # (H, 1, 1, N)
    even, odd = torch.nn.functional.pad(sums, (0, 0, 0, n_chunks % 2)).unflatten(2, (-1, 2)).unbind(3)
    before_even = states_before_chunks(torch.addcmul(odd, factor, even), decay * decay, start)
    before_odd = torch.addcmul(even, factor, before_even)
    return torch.stack([before_even, before_odd], dim=3).flatten(2, 3)[:, :, :n_chunks]


def _lags(kernels: Tensor, skip: Tensor | None, shift: int) -> Tensor:
    """Return the kernels (D, H, T) and the skip connection as one kernel at the lags 1-T … T-1: (H, 2T-1)."""
    present, past = kernels[0, :, :1], kernels[0, :, 1:]
    if skip is not None:
        present = present + skip.to(kernels.dtype).unsqueeze(-1)
    if len(kernels) == 1:
        return torch.cat([torch.zeros_like(past), present, past], dim=-1)
    if shift == 0:
        return torch.cat([kernels[1, :, 1:].flip(-1), present + kernels[1, :, :1], past], dim=-1)
    return torch.cat([kernels[1, :, :-1].flip(-1), present, past], dim=-1)


def _real(x: Tensor) -> Tensor:
    """Return complex (H, T, D, N) as real (H, T, 2DN)."""
    return torch.view_as_real(x.resolve_conj()).flatten(2)
