"""Second derivatives of operations with a hand-written backward pass.

Inside a backward pass, gradients are enabled if and only if the caller passes ``create_graph=True``. The backward pass
must then be differentiable itself.
"""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor


def gradients_of(
    function: Callable[..., Tensor | tuple[Tensor, ...]],
    inputs: Sequence[Tensor | None],
    needed: Sequence[bool],
    gradient: Tensor | tuple[Tensor, ...],
) -> tuple[Tensor | None, ...]:
    """Return the gradients of a differentiable ``function``, for use inside a backward pass.

    Args:
        function: composed of differentiable PyTorch operations.
        inputs: arguments of ``function``, as saved by the forward pass.
        needed: for each input, whether the gradient is needed (``ctx.needs_input_grad``).
        gradient: gradient of the output, or of every output.

    Returns:
        one gradient per input, None where it is not needed. The gradients are differentiable if gradients are enabled.
    """
    differentiable = torch.is_grad_enabled()
    if not differentiable:
        inputs = [
            None if x is None else x.detach().requires_grad_(need) for x, need in zip(inputs, needed, strict=True)
        ]
    with torch.enable_grad():
        output = function(*inputs)
        wanted = [x for x, need in zip(inputs, needed, strict=True) if need and x is not None]
        found = iter(torch.autograd.grad(output, wanted, gradient, create_graph=differentiable))
    return tuple(next(found) if need else None for need in needed)


def no_second_derivative(operation: str) -> Callable[..., NoReturn]:
    """Return a function that raises ``NotImplementedError``, as the derivative of an operation's backward pass."""

    def refuse(ctx: Any, *gradients: Tensor) -> NoReturn:
        raise NotImplementedError(
            f"the triton backend of {operation} has no second derivative: use backend='torch' or backend='reference'"
        )

    return refuse
