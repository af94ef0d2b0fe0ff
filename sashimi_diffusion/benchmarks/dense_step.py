"""The step of the official code, to compare with: every transition a dense complex matrix."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sashimi_diffusion.ssm.state_space import StateSpace


def step_densely(model: nn.Module) -> None:
    """Make all state spaces of type "nplr" in ``model`` step as the official code does by default when it generates.

    It writes Ā out, N x N complex numbers for each feature, and multiplies the whole state by it, the conjugate halves
    included: O(N²) where :meth:`StateSpace.step` is O(N). For measuring only: afterwards the model cannot prefill, and
    its steps are those of the parameters it had.
    """
    for module in model.modules():
        if isinstance(module, StateSpace) and module.parameterization == "nplr":
            module.step = DenseStep(module)


class DenseStep:
    """Takes the place of the method ``step`` of a state space; its states are complex (B, H, 2 N)."""

    @torch.no_grad()
    def __init__(self, state_space: StateSpace) -> None:
        system, c = state_space.discrete_system()
        halves = system.u, system.u.conj()
        others = torch.cat([system.v, system.v.conj()], dim=-1)
        rank_one = torch.cat(halves, dim=-1).unsqueeze(-1) * others.unsqueeze(-2)  # (H, 2 N, 2 N)
        self.a = torch.diag_embed(torch.cat([system.a, system.a.conj()], dim=-1)) - rank_one
        self.b = torch.cat([system.b, system.b.conj()], dim=-1)  # (H, 2 N)
        self.c = torch.cat([c, c.conj()], dim=-1)  # (M, H, 2 N)
        self.skip = state_space.D.detach()  # (M, H)

    def __call__(self, u: Tensor, state: Tensor, gelu: bool = False) -> tuple[Tensor, Tensor]:
        """One sample ``u`` (B, H): output (B, M · H) and the next state."""
        if state.shape[-1] < self.b.shape[-1]:  # the state at rest, of one half
            state = torch.cat([state, state.conj()], dim=-1)
        state = torch.einsum("hmn,bhn->bhm", self.a, state) + self.b * u.unsqueeze(-1)
        y = torch.einsum("mhn,bhn->bmh", self.c, state).real + self.skip * u.unsqueeze(1)
        y = y.flatten(1)
        return (F.gelu(y) if gelu else y), state
