"""The S4 layer: a state space, a nonlinearity and a gated linear map that mixes the features."""

from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional as F

from sashimi_diffusion.ssm.convolution import Operator
from sashimi_diffusion.ssm.pointwise import Pointwise
from sashimi_diffusion.ssm.state_space import StateSpace
from sashimi_kernels import gated_linear, gated_residual


class S4Layer(nn.Module):
    """GLU(W · dropout(GELU(state space(u))) + b), the layer of S4 and SaShiMi.

    See arXiv 2111.00396, and arXiv 2202.09729, section 3.

    Args:
        d_model: number of features H.
        dropout: probability of zeroing an activation during training.
        **state_space: arguments of :class:`StateSpace`.
    """

    def __init__(self, d_model: int, dropout: float = 0.0, **state_space: Any) -> None:
        super().__init__()
        self.ssm = StateSpace(d_model, **state_space)
        self.dropout = nn.Dropout(dropout)
        self.output_linear = Pointwise(self.ssm.outputs_per_feature * d_model, 2 * d_model)

    def forward(
        self,
        u: Tensor,
        state: Tensor | None = None,
        rate: float = 1.0,
        residual: Tensor | None = None,
        operator: Operator | None = None,
    ) -> Tensor:
        """Apply the layer to a sequence.

        Args:
            u: input, (B, H, L).
            state: initial state, (B, H, N); zero if not given.
            rate, operator: see :meth:`StateSpace.forward`.
            residual: added to the output, (B, H, L).

        Returns:
            (B, H, L).
        """
        return self._mix(self.ssm(u, state, rate, operator), residual)

    def prefill(
        self, u: Tensor, state: Tensor | None = None, rate: float = 1.0, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the output of :meth:`forward` and the state after the last sample, (B, H, N)."""
        y, state = self.ssm.prefill(u, state, rate)
        return self._mix(y, residual), state

    def step(
        self, u: Tensor, state: Tensor, rate: float = 1.0, residual: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Process one sample ``u`` (B, H): return the output (B, H) plus ``residual``, and the next state (B, H, N)."""
        y, state = self.ssm.step(u, state, rate)
        residual = None if residual is None else residual.unsqueeze(-1)
        return self._mix(y.unsqueeze(-1), residual).squeeze(-1), state

    def initial_state(self, batch_size: int) -> Tensor:
        """Return the zero state, (B, H, N)."""
        return self.ssm.initial_state(batch_size)

    def _mix(self, y: Tensor, residual: Tensor | None) -> Tensor:
        """Apply GELU, dropout and the gated linear map to the output of the state space, and add ``residual``."""
        linear, backend = self.output_linear, self.ssm.backend
        if not (self.training and self.dropout.p > 0):
            return gated_linear(y, linear.weight.squeeze(-1), cast(Tensor, linear.bias), residual, backend)
        y = linear(self.dropout(F.gelu(y)))
        return F.glu(y, dim=1) if residual is None else gated_residual(y, residual, backend)
