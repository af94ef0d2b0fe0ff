"""The chunked convolution of a diagonal system as a custom operation with gradients.

Differentiable PyTorch code computes the operators of a chunk from the parameters. The custom operation applies them;
``chunk_kernels`` has the equations. Only the arguments are saved for the backward pass, which recomputes the states.
This is about a seventh of the work of the backward pass, and saves as much memory as the samples take in float32.
"""

from typing import Any

import torch
from torch import Tensor

from sashimi_kernels.derivatives import no_second_derivative
from sashimi_kernels.discretization import DiscreteDiagonal
from sashimi_kernels.torch_backend.convolution import CHUNK, chunk_operators
from sashimi_kernels.triton_backend.chunk_gradients import decay_gradient, lag_gradient, operator_gradient
from sashimi_kernels.triton_backend.chunk_kernels import BLOCK_STATE, chunk_outputs, chunk_states


def chunked_convolution(
    u: Tensor,
    system: DiscreteDiagonal,
    c: Tensor,
    skip: Tensor | None,
    reverse: Tensor | None,
    shift: int,
    state: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Compute the states before the chunks, then the outputs of the chunks."""
    n_batch, _, length = u.shape
    operators = chunk_operators(system, c, skip, reverse, shift, CHUNK, torch.complex64)
    decay = operators.powers[:, CHUNK].unsqueeze(1).expand(-1, operators.write.shape[2], -1)
    if state is None:
        state = operators.write.new_zeros(n_batch, *system.b.shape)
    columns = (_columns(x) for x in (operators.write, operators.read, decay, state.unsqueeze(2)))
    y, last = _chunked_convolution(u, operators.lags, *columns)
    if reverse is not None:
        return y, None
    entering = torch.view_as_complex(last.unflatten(-1, (-1, 2)))[..., : system.b.shape[-1]]
    rest = u[..., (length - 1) // CHUNK * CHUNK :].float()
    return y, operators.state_after(rest, entering)


@torch.library.custom_op("sashimi_kernels::chunked_convolution", mutates_args=())
def _chunked_convolution(
    u: Tensor, lags: Tensor, write: Tensor, read: Tensor, decay: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the output, (B, H, L), and the forward direction's state before the last chunk.

    The arguments are those of ``chunk_states`` and ``chunk_outputs``; ``state`` is ``start``.
    """
    u = _along_length(u)
    states = _states(u, write, decay, state)
    y = chunk_outputs(u, lags.contiguous(), read.contiguous(), states)
    return y, states[:, :, -1, : state.shape[-1]].clone()


@torch.library.custom_op("sashimi_kernels::chunk_adjoint_states", mutates_args=())
def _adjoint_states(dy: Tensor, dlast: Tensor, read: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradients of the contributions of all chunks to the states, and of the state before the signal."""
    dy, dlast, start = _along_length(dy), dlast.contiguous(), torch.zeros_like(dlast)
    conjugate = torch.view_as_real(_complex(decay).conj().resolve_conj()).flatten(-2)
    return chunk_states(dy, read.contiguous(), conjugate, start, dlast, adjoint=True)


@torch.library.custom_op("sashimi_kernels::chunk_signal_gradient", mutates_args=())
def _signal_gradient(dy: Tensor, lags: Tensor, write: Tensor, adjoint_states: Tensor) -> Tensor:
    """Return the gradient of u."""
    return chunk_outputs(_along_length(dy), lags.flip(-1), write.contiguous(), adjoint_states)


@torch.library.custom_op("sashimi_kernels::chunk_operator_gradients", mutates_args=())
def _operator_gradients(
    dy: Tensor, u: Tensor, write: Tensor, decay: Tensor, state: Tensor, adjoint_states: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of lags, write, read and decay."""
    u, dy = _along_length(u), _along_length(dy)
    states = _states(u, write, decay, state)
    return (
        lag_gradient(dy, u),
        operator_gradient(u, adjoint_states),
        operator_gradient(dy, states),
        decay_gradient(states, adjoint_states),
    )


@_chunked_convolution.register_fake
def _(u: Tensor, lags: Tensor, write: Tensor, read: Tensor, decay: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    return u.new_empty(u.shape), state.new_empty(state.shape)


@_adjoint_states.register_fake
def _(dy: Tensor, dlast: Tensor, read: Tensor, decay: Tensor) -> tuple[Tensor, Tensor]:
    n_chunks = -(-dy.shape[-1] // CHUNK)
    return dlast.new_empty(*dy.shape[:2], n_chunks, read.shape[-1]), dlast.new_empty(dlast.shape)


@_signal_gradient.register_fake
def _(dy: Tensor, lags: Tensor, write: Tensor, adjoint_states: Tensor) -> Tensor:
    return dy.new_empty(dy.shape)


@_operator_gradients.register_fake
def _(
    dy: Tensor, u: Tensor, write: Tensor, decay: Tensor, state: Tensor, adjoint_states: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    lags = write.new_empty(write.shape[0], 2 * CHUNK - 1)
    return lags, write.new_empty(write.shape), write.new_empty(write.shape), decay.new_empty(decay.shape)


def _keep_inputs(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
    u, lags, write, read, decay, state = ctx.saved_tensors
    adjoint_states, dstate = _adjoint_states(dy, dlast, read, decay)
    du = _signal_gradient(dy, lags, write, adjoint_states) if ctx.needs_input_grad[0] else None
    if not any(ctx.needs_input_grad[1:5]):
        return du, None, None, None, None, dstate
    return du, *_operator_gradients(dy, u, write, decay, state, adjoint_states), dstate


_chunked_convolution.register_autograd(_gradients, setup_context=_keep_inputs)
for _backward in (_adjoint_states, _signal_gradient, _operator_gradients):
    _backward.register_autograd(no_second_derivative("chunked_convolution"))


def _states(u: Tensor, write: Tensor, decay: Tensor, state: Tensor) -> Tensor:
    state = state.contiguous()
    added = torch.zeros_like(state)
    return chunk_states(u, write.contiguous(), decay.contiguous(), state, added, adjoint=False)[0]


def _along_length(u: Tensor) -> Tensor:
    """Return ``u`` contiguous along the samples. A copy costs less than strided reads, as chunks are read twice."""
    return u if u.stride(-1) == 1 else u.contiguous()


def _columns(x: Tensor) -> Tensor:
    """Convert complex (..., D, N) to pairs of float32, (..., K), with N padded to a multiple of the block size."""
    n_states = x.shape[-1]
    block = BLOCK_STATE // 2
    padded = torch.nn.functional.pad(x.to(torch.complex64), (0, -n_states % block))
    return torch.view_as_real(padded.resolve_conj()).flatten(-3)


def _complex(columns: Tensor) -> Tensor:
    return torch.view_as_complex(columns.contiguous().unflatten(-1, (-1, 2)))
