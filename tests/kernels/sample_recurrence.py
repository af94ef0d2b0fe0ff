"""The recurrence of a discrete system, sample by sample: the definition of the chunked convolution."""

import torch
from torch import Tensor


def recurrence(inputs: dict[str, Tensor], shift: int) -> tuple[Tensor, Tensor | None]:
    """Run x[t] = Ā x[t-1] + B̄ u[t], z[t] = Ā z[t+1] + B̄ u[t], y[t] = 2 Re(C x[t]) + 2 Re(C' z[t+shift]) + D u[t]."""

    def advance(x: Tensor) -> Tensor:
        if "system.log_a" in inputs:
            return torch.exp(inputs["system.log_a"]) * x
        scalar = 2 * (inputs["system.v"] * x).real.sum(-1, keepdim=True)
        return inputs["system.a"] * x - inputs["system.u"] * scalar

    samples = inputs["u"].unsqueeze(-1).unbind(2)  # (B, H, 1) each
    x = inputs.get("state", inputs["c"].new_zeros(samples[0].shape[0], *inputs["c"].shape, dtype=torch.complex128))
    y = []
    for sample in samples:
        x = advance(x) + inputs["system.b"] * sample
        y.append(2 * (inputs["c"] * x).real.sum(-1))
    outputs = torch.stack(y, dim=-1) + inputs["skip"].unsqueeze(-1) * inputs["u"]
    if "reverse" not in inputs:
        return outputs, x
    z, future = torch.zeros_like(x), []
    for sample in reversed(samples):
        following, z = z, advance(z) + inputs["system.b"] * sample
        future.append(2 * (inputs["reverse"] * (z if shift == 0 else following)).real.sum(-1))
    return outputs + torch.stack(future[::-1], dim=-1), None
