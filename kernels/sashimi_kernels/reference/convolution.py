"""Reference implementation of the chunked convolution and of its operators.

The operators are powers of the dense matrix; the convolution is a recurrence over the chunks, one after the other.
"""

import torch
from torch import Tensor

from sashimi_kernels.chunks import CHUNK, ChunkOperators
from sashimi_kernels.discretization import DiscreteDiagonal, DiscreteNPLR


def chunk_operators(
    system: DiscreteDiagonal | DiscreteNPLR, c: Tensor, skip: Tensor | None, reverse: Tensor | None, shift: int
) -> ChunkOperators:
    """Return the operators in the real counterpart of the dtype of ``c``; ``step`` has the precision of ``system``."""
    step = _step(system)  # (H, n, n)
    powers = [torch.eye(step.shape[-1], dtype=step.dtype, device=step.device).expand_as(step)]
    for _ in range(CHUNK):
        powers.append(powers[-1] @ step)
    columns = _products(_rows(system.b), powers[:CHUNK])
    row = 2 * _rows(c.conj()).to(step.dtype)  # row · state = 2 Re(c · state)
    write, read = columns.flip(1), _products(row, [power.mT for power in powers[1:]])
    past = (columns @ row.unsqueeze(-1)).squeeze(-1)  # (H, T)
    lags = torch.nn.functional.pad(past, (CHUNK - 1, 0))
    if reverse is not None:
        row = 2 * _rows(reverse.conj()).to(step.dtype)
        rows = _products(row, [power.mT for power in powers[1 - shift : CHUNK + 1 - shift]])
        write, read = torch.cat([write, columns], dim=-1), torch.cat([read, rows.flip(1)], dim=-1)
        future = (columns @ row.unsqueeze(-1)).squeeze(-1)[:, : CHUNK - shift]
        lags = lags + torch.nn.functional.pad(future.flip(-1), (0, CHUNK - 1 + shift))
    if skip is not None:
        lags = lags + torch.nn.functional.pad(skip.unsqueeze(-1), (CHUNK - 1, CHUNK - 1))
    lags, write, read, advance = (x.to(c.real.dtype) for x in (lags, write, read, powers[CHUNK]))
    return ChunkOperators(lags, write, read, advance, step if reverse is None else None)


def _step(system: DiscreteDiagonal | DiscreteNPLR) -> Tensor:
    """Return Ā as a real matrix (H, n, n) that multiplies rows of states from the right: the images of unit rows."""
    n = 2 * system.b.shape[-1]
    unit = torch.eye(n, dtype=system.b.real.dtype, device=system.b.device)
    states = torch.view_as_complex(unit.unflatten(-1, (-1, 2))).unsqueeze(1)  # (n, 1, N)
    if isinstance(system, DiscreteDiagonal):
        return _rows(torch.exp(system.log_a) * states).transpose(0, 1)
    scalar = 2 * (system.v * states).real.sum(-1, keepdim=True)
    return _rows(system.a * states - system.u * scalar).transpose(0, 1)


def _products(row: Tensor, matrices: list[Tensor]) -> Tensor:
    """Return the products of rows (H, n) and T matrices (H, n, n): (H, T, n)."""
    return torch.cat([row.unsqueeze(1) @ matrix for matrix in matrices], dim=1)


def chunked_convolution(
    u: Tensor, operators: ChunkOperators, state: Tensor | None, with_final: bool
) -> tuple[Tensor, Tensor | None]:
    """Run the recurrence from the first chunk to the last and, for a reverse direction, from the last to the first."""
    lags, write, read, advance = (x.to(operators.lags.dtype) for x in operators[:4])
    length, chunk, n = u.shape[-1], write.shape[1], advance.shape[-1]
    toeplitz = torch.stack([lags[:, chunk - 1 - j : 2 * chunk - 1 - j] for j in range(chunk)], dim=1)  # (H, T, T)
    padded = torch.nn.functional.pad(u.to(lags.dtype), (0, -length % chunk))
    chunks = padded.transpose(0, 1).split(chunk, dim=-1)  # (H, B, T) each
    zeros = torch.zeros(*chunks[0].shape[:2], n, dtype=lags.dtype, device=u.device)
    s, outputs, last = zeros if state is None else _rows(state.to(lags.dtype.to_complex())).transpose(0, 1), [], zeros
    for samples in chunks:
        outputs.append(samples @ toeplitz + s @ read[..., :n].mT)
        last, s = s, s @ advance + samples @ write[..., :n]
    if operators.n_directions == 2:
        s = zeros
        for index in reversed(range(len(chunks))):
            outputs[index] = outputs[index] + s @ read[..., n:].mT
            s = s @ advance + chunks[index] @ write[..., n:]
    y = torch.cat(outputs, dim=-1).transpose(0, 1)[..., :length].to(u.dtype)
    if operators.step is None or not with_final:
        return y, None
    for sample in chunks[-1].split(1, dim=-1)[: length - chunk * (len(chunks) - 1)]:
        last = last @ operators.step.to(last.dtype) + sample @ write[:, -1:]
    final = torch.view_as_complex(last.unflatten(-1, (-1, 2)).contiguous()).transpose(0, 1)
    return y, final.to(torch.complex128 if u.dtype == torch.float64 else torch.complex64)


def _rows(state: Tensor) -> Tensor:
    """Convert complex states (..., N) to real rows (..., 2N)."""
    return torch.view_as_real(state.resolve_conj()).flatten(-2)
