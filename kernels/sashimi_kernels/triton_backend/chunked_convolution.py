"""The chunked convolution as a custom operation with gradients.

The forward pass has two kernels, one for the states before the chunks (``chunk_states``) and one for the outputs
(``chunk_outputs``). Only the arguments are saved for the backward pass, which computes

    adjoint states Z of dY      chunk_states with read instead of write, transposed advance, reversed directions
    gradient of the signal      chunk_outputs with flipped lags, write instead of read, and Z
    states S of U               chunk_states again
    gradients of the operators  chunk_products of U, dY, S and Z

The states would take as much memory as the signal in half precision, and computing them again costs one kernel.
"""

from typing import Any

import torch
from torch import Tensor

from sashimi_kernels.chunks import CHUNK, ChunkOperators
from sashimi_kernels.derivatives import no_second_derivative
from sashimi_kernels.torch_backend.convolution import state_after
from sashimi_kernels.torch_backend.krylov import as_row
from sashimi_kernels.triton_backend.chunk_outputs import chunk_outputs
from sashimi_kernels.triton_backend.chunk_products import operator_gradients
from sashimi_kernels.triton_backend.chunk_states import chunk_states, chunk_states_and_edge
from sashimi_kernels.triton_backend.chunk_tiles import MULTIPLE, aligned, padded


def chunked_convolution(
    u: Tensor, operators: ChunkOperators, state: Tensor | None, with_final: bool
) -> tuple[Tensor, Tensor | None]:
    """Compute the states before the chunks, then the outputs of the chunks. Both need a length divisible by 8."""
    lags, write, read, advance = (x.float() for x in operators[:4])
    if write.shape[1] != CHUNK:
        raise ValueError(f"expected operators for chunks of {CHUNK} samples, got {write.shape[1]}")
    n, length = advance.shape[-1], u.shape[-1]
    write, read, advance = padded(write, n), padded(read, n), padded(advance, n, rows=True)
    signal = torch.nn.functional.pad(u, (0, -length % MULTIPLE)) if length % MULTIPLE else u
    start = None if state is None else padded(as_row(state).float(), n)
    if start is None and with_final and operators.step is not None:
        start = write.new_zeros(*u.shape[:2], advance.shape[-1])
    y, last = _chunked_convolution(signal, lags, write, read, advance, start)
    y = y[..., :length].contiguous() if length % MULTIPLE else y
    if not with_final or operators.step is None:
        return y, None
    return y, state_after(u, operators, last[..., :n].transpose(0, 1))


@torch.library.custom_op("sashimi_kernels::chunked_convolution", mutates_args=())
def _chunked_convolution(
    u: Tensor, lags: Tensor, write: Tensor, read: Tensor, advance: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return the output, (B, H, L), and the state before the last chunk, (B, H, n), empty without ``state``."""
    u, (lags, write, read, advance) = aligned(u), (x.contiguous() for x in (lags, write, read, advance))
    if state is None:
        states, last = chunk_states(u, write, advance), write.new_empty(0)
    else:
        states, last = chunk_states_and_edge(u, write, advance, False, state.contiguous())
    return chunk_outputs(u, lags, read, states), last


@torch.library.custom_op("sashimi_kernels::chunked_convolution_backward", mutates_args=())
def _chunked_convolution_backward(
    dy: Tensor,
    dlast: Tensor | None,
    u: Tensor,
    lags: Tensor,
    write: Tensor,
    read: Tensor,
    advance: Tensor,
    state: Tensor | None,
    of_signal: bool,
    of_operators: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of u, lags, write, read, advance and state, empty where they are not computed."""
    u, dy = aligned(u), aligned(dy)
    lags, write, read, advance = (x.contiguous() for x in (lags, write, read, advance))
    if state is None:
        adjoint, dstate = chunk_states(dy, read, advance, adjoint=True), write.new_empty(0)
    else:
        state = state.contiguous()
        dlast = torch.zeros_like(state) if dlast is None else dlast.contiguous()
        adjoint, dstate = chunk_states_and_edge(dy, read, advance, True, dlast)
    du = chunk_outputs(dy, lags, write, adjoint, flipped=True) if of_signal else u.new_empty(0)
    if not of_operators:
        dlags, dwrite, dread, dadvance = (write.new_empty(0) for _ in range(4))
        return du, dlags, dwrite, dread, dadvance, dstate
    if state is None:
        states = chunk_states(u, write, advance)
    else:
        states, _ = chunk_states_and_edge(u, write, advance, False, state)
    dlags, dwrite, dread, dadvance = operator_gradients(u, dy, states, adjoint, advance.shape[-1])
    return du, dlags, dwrite, dread, dadvance, dstate


@_chunked_convolution.register_fake
def _(
    u: Tensor, lags: Tensor, write: Tensor, read: Tensor, advance: Tensor, state: Tensor | None
) -> tuple[Tensor, Tensor]:
    return u.new_empty(u.shape), write.new_empty(0) if state is None else state.new_empty(state.shape)


@_chunked_convolution_backward.register_fake
def _(
    dy: Tensor,
    dlast: Tensor | None,
    u: Tensor,
    lags: Tensor,
    write: Tensor,
    read: Tensor,
    advance: Tensor,
    state: Tensor | None,
    of_signal: bool,
    of_operators: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dlags, dwrite, dread, dadvance = (x.new_empty(x.shape if of_operators else 0) for x in (lags, write, read, advance))
    dstate = write.new_empty(0 if state is None else state.shape)
    return u.new_empty(u.shape if of_signal else 0), dlags, dwrite, dread, dadvance, dstate


def _keep_inputs(ctx: Any, inputs: tuple[Tensor | None, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs)
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy: Tensor | None, dlast: Tensor | None) -> tuple[Tensor | None, ...]:
    u, *operators, state = ctx.saved_tensors
    dy = torch.zeros_like(u) if dy is None else dy
    needs = ctx.needs_input_grad
    of_operators = any(needs[1:5])
    du, *found, dstate = _chunked_convolution_backward(dy, dlast, u, *operators, state, needs[0], of_operators)
    gradients = found if of_operators else [None] * 4
    return du if needs[0] else None, *gradients, dstate if needs[5] else None


_chunked_convolution.register_autograd(_gradients, setup_context=_keep_inputs)
_chunked_convolution_backward.register_autograd(no_second_derivative("chunked_convolution"))
