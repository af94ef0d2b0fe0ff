"""The S4 layer: a state space, a nonlinearity and a gated linear map that mixes the features."""

from torch import Tensor, nn
from torch.nn import functional as F

from sashimi_diffusion.ssm.pointwise import Pointwise, gelu
from sashimi_diffusion.ssm.state_space import StateSpace
from sashimi_kernels import gated_residual


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

    def forward(self, u: Tensor, state: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """(batch, H, L) to (batch, H, L), after an initial ``state`` (batch, H, N); added to ``residual`` if given."""
        y = self._mix(self.ssm(u, state))
        return F.glu(y, dim=1) if residual is None else gated_residual(y, residual)

    def prefill(self, u: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """:meth:`forward`, and the state after the last sample."""
        y, state = self.ssm.prefill(u, state)
        return F.glu(self._mix(y), dim=1), state

    def step(self, u: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """One sample ``u`` (batch, H) from ``state``: output (batch, H) and the next state."""
        y, state = self.ssm.step(u, state, gelu=True)
        return F.glu(self.output_linear(y.unsqueeze(-1)), dim=1).squeeze(-1), state

    def initial_state(self, batch_size: int) -> Tensor:
        """The state at rest."""
        return self.ssm.initial_state(batch_size)

    def _mix(self, y: Tensor) -> Tensor:
        return self.output_linear(gelu(y))
