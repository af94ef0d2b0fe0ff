"""Muon: gradient descent whose every step turns all directions of a weight matrix equally far."""

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

# Five iterations of x -> a x + b (x xᵀ) x + c (x xᵀ)² x bring every singular value to between about 0.7 and 1.2.
_ITERATIONS = 5
_A, _B, _C = 3.4445, -4.7750, 2.0315
# An orthogonal step of a (rows, columns) matrix has a root mean square of 1/sqrt(max(rows, columns)); times this, it is
# that of AdamW's steps, so that both take the same learning rate and weight decay (arXiv 2502.16982, equation 4).
_ADAMW_RMS = 0.2


class Muon(Optimizer):
    """Momentum, made orthogonal by Newton-Schulz iterations (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    For the weights of linear maps and convolutions, which count as matrices of one row per output. Weight decay is
    decoupled, as AdamW's.

    Args:
        params: parameters of at least two dimensions, or groups of them.
        lr: learning rate, on the scale of AdamW's.
        momentum: share of the past in the average of the gradients; the step looks ahead by as much (Nesterov).
        weight_decay: share of the weights taken off in every step, times the learning rate.
    """

    def __init__(self, params: Iterable, lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Change every parameter that has a gradient."""
        for group in self.param_groups:
            alike = defaultdict(list)  # by shape: matrices of one shape are multiplied together
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.flatten(1).shape].append(parameter)
            for (rows, columns), parameters in alike.items():
                looking_ahead = torch.stack([self._momentum(p, group["momentum"]).flatten(1) for p in parameters])
                steps = orthogonal(looking_ahead)
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                size = group["lr"] * _ADAMW_RMS * max(rows, columns) ** 0.5
                for parameter, step in zip(parameters, steps, strict=True):
                    parameter.sub_(step.reshape(parameter.shape), alpha=size)

    def _momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        """Take the gradient into the parameter's average; returns the average as it will be a step later."""
        state = self.state[parameter]
        if not state:
            state["average"] = torch.zeros_like(parameter)
        average = state["average"].lerp_(parameter.grad, 1 - momentum)
        return parameter.grad.lerp(average, momentum)


def orthogonal(matrices: Tensor) -> Tensor:
    """The matrices (B, rows, columns), float32, with all their singular values near 1; zeros stay zeros."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-12)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x if wide else x.mT


class Together:
    """Several optimisers, stepped and stored as one.

    Args:
        parts: optimisers of different parameters.
    """

    def __init__(self, parts: list[Optimizer]) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict]:
        """The groups of all parts, in order."""
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        """Step every part."""
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of every part."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict:
        """The state of every part."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict) -> None:
        """Take back what :meth:`state_dict` gave.

        Raises:
            ValueError: it is that of another kind of optimiser.
        """
        if len(state.get("parts", ())) != len(self.parts):
            raise ValueError("the checkpoint was written with another optimizer.name")
        for part, stored in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(stored)
