"""Reference implementation of the convolution with a diagonal system: its recurrence in both directions."""

import torch
from torch import Tensor

from sashimi_kernels.discretization import DiscreteDiagonal


def chunked_convolution(
    u: Tensor,
    system: DiscreteDiagonal,
    c: Tensor,
    skip: Tensor | None,
    reverse: Tensor | None,
    shift: int,
    state: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Run the recurrences from the first sample to the last and, for a reverse direction, from the last to the first.

    x[t] = Ā x[t-1] + B̄ u[t], z[t] = Ā z[t+1] + B̄ u[t], y[t] = 2 Re(C x[t]) + 2 Re(C' z[t+shift]) + D u[t].
    """
    a, b = torch.exp(system.log_a), system.b
    zeros = torch.zeros(u.shape[0], *a.shape, dtype=a.dtype, device=u.device)
    x, outputs = zeros if state is None else state.to(a.dtype), []
    for sample in u.unbind(-1):
        x = a * x + b * sample.unsqueeze(-1)  # (B, H, N)
        outputs.append(2 * (c * x).real.sum(-1))
    y = torch.stack(outputs, dim=-1)  # (B, H, L)
    if skip is not None:
        y = y + skip.unsqueeze(-1) * u
    if reverse is None:
        return y.to(u.dtype), x.to(torch.complex128 if u.dtype == torch.float64 else torch.complex64)
    z, future = zeros, []
    for sample in reversed(u.unbind(-1)):
        following, z = z, a * z + b * sample.unsqueeze(-1)
        future.append(2 * (reverse * (z if shift == 0 else following)).real.sum(-1))
    return (y + torch.stack(future[::-1], dim=-1)).to(u.dtype), None
