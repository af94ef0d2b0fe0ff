"""Checks that the state spaces share: input shapes, and derivatives that the kernels do not compute."""

import torch
from torch import Tensor


def require_sequence(u: Tensor, d_model: int) -> None:
    """Raise ValueError unless ``u`` has shape (B, d_model, L) with at least one sample."""
    if u.ndim != 3 or u.shape[1] != d_model:
        raise ValueError(f"expected an input of shape (batch, {d_model}, length), got {tuple(u.shape)}")
    require_length(u.shape[-1])


def require_length(length: int) -> None:
    """Raise ValueError unless ``length`` is at least 1."""
    if length < 1:
        raise ValueError(f"expected a length of at least 1 sample, got {length}")


def require_rate(rate: float) -> None:
    """Raise ValueError unless ``rate``, a factor of the step sizes, is positive."""
    if not rate > 0:
        raise ValueError(f"rate must be positive, got {rate}")


def refuse_second_derivatives(y: Tensor, advice: str) -> Tensor:
    """Return ``y``, whose gradient raises a RuntimeError if it is itself to be differentiated.

    The backward passes of the optimized kernels are not differentiable. Without this check, second derivatives would be
    wrong.

    Args:
        y: output of an optimized kernel.
        advice: what to do instead, for the error message.
    """

    def check(gradient: Tensor) -> None:
        if torch.is_grad_enabled():  # as under create_graph=True
            raise RuntimeError(f"the optimized state-space kernels have no second derivatives: {advice}")

    if y.requires_grad and not torch.compiler.is_compiling():
        y.register_hook(check)
    return y
