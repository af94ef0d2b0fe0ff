"""Reference implementation of the chunked convolution: the recurrence over the chunks, one chunk after the other."""

import torch
from torch import Tensor

from sashimi_kernels.chunks import ChunkOperators


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
    s, outputs, last = zeros if state is None else _rows(state.to(lags.dtype.to_complex())), [], zeros
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
    """Convert states, complex (B, H, N), to rows (H, B, 2N)."""
    return torch.view_as_real(state.resolve_conj()).flatten(-2).transpose(0, 1)
