"""The S4 layer: a state space, a nonlinearity and a gated linear map that mixes the features."""

from torch import Tensor, nn
from torch.nn import functional as F

from sashimi_diffusion.ssm.pointwise import Pointwise
from sashimi_diffusion.ssm.state_space import StateSpace


class S4Layer(nn.Module):
    """GLU(W · GELU(state space(u)) + b), as in S4 (arXiv 2111.00396) and SaShiMi (arXiv 2202.09729, section 3).

    Args:
        d_model: number of features H.
        **state_space: what :class:`StateSpace` takes.
    """

    def __init__(self, d_model: int, **state_space) -> None:
        super().__init__()
        self.ssm = StateSpace(d_model, **state_space)
        self.output_linear = Pointwise(self.ssm.channels * d_model, 2 * d_model)

    def forward(self, u: Tensor, state: Tensor | None = None) -> Tensor:
        """(batch, H, L) to (batch, H, L), after an initial ``state`` (batch, H, N) when given."""
        return self._mix(self.ssm(u, state))

    def prefill(self, u: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """:meth:`forward`, and the state after the last sample."""
        y, state = self.ssm.prefill(u, state)
        return self._mix(y), state

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One sample ``u`` (batch, H) from ``state``: output (batch, H) and the next state."""
        y, state = self.ssm.step(u, state)
        return self._mix(y.unsqueeze(-1)).squeeze(-1), state

    def initial_state(self, batch_size: int) -> Tensor:
        """The state at rest."""
        return self.ssm.initial_state(batch_size)

    def _mix(self, y: Tensor) -> Tensor:
        return F.glu(self.output_linear(F.gelu(y)), dim=1)
