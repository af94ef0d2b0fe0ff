"""Muon, an optimizer that takes steps along the orthogonalized momentum.

It replaces torch.optim.Muon, which accepts 2-D parameters only: most weights here are convolutions (3-D).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

# Five iterations of x -> a x + b (x xᵀ) x + c (x xᵀ)² x move every singular value to between about 0.7 and 1.2.
_ITERATIONS = 5
_A, _B, _C = 3.4445, -4.7750, 2.0315
# Root mean square of a step at learning rate 1, about that of AdamW, so that both use the same learning rate and weight
# decay (arXiv 2502.16982, equation 4). An orthogonal (rows, columns) matrix has 1/sqrt(max(rows, columns)).
_ADAMW_RMS = 0.2


class Muon(Optimizer):
    """Momentum, orthogonalized by Newton-Schulz iterations (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    It is meant for the weights of linear layers and convolutions, viewed as matrices with one row per output. Weight
    decay is decoupled, as in AdamW.

    Args:
        params: parameters of at least two dimensions, or groups of them.
        lr: learning rate, on the scale of AdamW's.
        momentum: decay of the average of the gradients, with Nesterov's look-ahead.
        weight_decay: each step multiplies the weights by 1 - lr * weight_decay.

    Attributes:
        grad_scale: scalar by which gradients are divided, or None.
        found_inf: scalar, 1 if the step must change nothing, otherwise 0, or None. With it and a learning rate in a
            tensor, a step needs no value on the host, as PyTorch's fused optimizers.
    """

    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None

    def __init__(self, params: Iterable, lr: float = 1e-3, momentum: float = 0.95, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # no closures
        """Update every parameter that has a gradient. ``closure`` must be None."""
        for group in self.param_groups:
            rate = group["lr"] if self.found_inf is None else group["lr"] * (1 - self.found_inf)
            by_shape = defaultdict(list)  # matrices of one shape are multiplied in one batch
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[parameter.flatten(1).shape].append(parameter)
            for (rows, columns), parameters in by_shape.items():
                momenta = torch.stack([self._momentum(p, group["momentum"]).flatten(1) for p in parameters])
                steps = orthogonalize(momenta)
                torch._foreach_mul_(parameters, 1 - rate * group["weight_decay"])
                size = rate * _ADAMW_RMS * max(rows, columns) ** 0.5
                for parameter, step in zip(parameters, steps, strict=True):
                    if isinstance(size, Tensor):
                        parameter.sub_(step.reshape(parameter.shape) * size)
                    else:
                        parameter.sub_(step.reshape(parameter.shape), alpha=size)

    def _momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        """Update the average of the gradients of ``parameter`` and return it with Nesterov's look-ahead."""
        gradient = parameter.grad
        assert gradient is not None
        state = self.state[parameter]
        if not state:
            state["average"] = torch.zeros_like(parameter)
        average = state["average"]
        if self.grad_scale is not None:
            gradient = gradient / self.grad_scale
        if self.found_inf is not None:  # the average of itself stays the same
            gradient = torch.where(self.found_inf == 0, gradient, average)
        average.lerp_(gradient, 1 - momentum)
        return gradient.lerp(average, momentum)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Return float32 matrices (B, rows, columns) with all singular values near 1; zero matrices stay zero."""
    wide = matrices.shape[1] <= matrices.shape[2]
    x = matrices if wide else matrices.mT
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-12)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x if wide else x.mT


class CombinedOptimizer:
    """Several optimizers with the interface of one.

    Args:
        parts: optimizers of different parameters.
    """

    def __init__(self, parts: list[Optimizer]) -> None:
        self.parts = parts

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all parts, in order."""
        return [group for part in self.parts for group in part.param_groups]

    def step(self) -> None:
        """Take one step with every part."""
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients of every part."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict:
        """Return the states of all parts."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state: dict) -> None:
        """Load a result of :meth:`state_dict`.

        Raises:
            ValueError: ``state`` belongs to another kind of optimizer.
        """
        if len(state.get("parts", ())) != len(self.parts):
            raise ValueError("the checkpoint was written with another optimizer.name")
        for part, stored in zip(self.parts, state["parts"], strict=True):
            part.load_state_dict(stored)
