"""State-space layers: initializations, the state space itself, and the S4 layer around it."""

from sashimi_diffusion.ssm.cache import frozen
from sashimi_diffusion.ssm.s4 import S4Layer
from sashimi_diffusion.ssm.state_space import StateSpace, state_space_parameters

__all__ = ["S4Layer", "StateSpace", "frozen", "state_space_parameters"]
