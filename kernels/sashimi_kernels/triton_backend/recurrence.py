"""One recurrence step of a diagonal or diagonal-plus-rank-one system as a custom operation with gradients.

Complex numbers are pairs of float32. The equations and the kernels are in ``recurrence_kernels``.
"""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor

from sashimi_kernels.derivatives import no_second_derivative
from sashimi_kernels.discretization import DiscreteNPLR
from sashimi_kernels.triton_backend.arguments import FLOATS, form, pointers
from sashimi_kernels.triton_backend.launch import Launch, launch
from sashimi_kernels.triton_backend.recurrence_kernels import (
    parameter_gradients_kernel,
    signal_gradients_kernel,
    step_kernel,
)

_BLOCKS = {"BLOCK_H": 4, "BLOCK_N": 32}
# A recurrence step is bound by memory latency, which many small programs hide.
_N_WARPS = 1


def diagonal_step(
    u: Tensor, state: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor, gelu: bool
) -> tuple[Tensor, Tensor]:
    """Compute x = a state + b u and its output."""
    y, x, _ = _step(u, _pairs(state), _pairs(a), _pairs(b), None, None, _pairs(c), skip.float(), gelu)
    return y, torch.view_as_complex(x)


def nplr_step(
    u: Tensor, state: Tensor, system: DiscreteNPLR, c: Tensor, skip: Tensor, gelu: bool
) -> tuple[Tensor, Tensor]:
    """Compute x = a state - system.u · 2 Re(v · state) + b u and its output."""
    a, p, q, b = (_pairs(part) for part in system)
    y, x, _ = _step(u, _pairs(state), a, b, p, q, _pairs(c), skip.float(), gelu)
    return y, torch.view_as_complex(x)


@torch.library.custom_op("sashimi_kernels::step", mutates_args=())
def _step(
    u: Tensor,
    state: Tensor,
    a: Tensor,
    b: Tensor,
    p: Tensor | None,
    q: Tensor | None,
    c: Tensor,
    skip: Tensor,
    gelu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, x and, in float32, z of ``recurrence_kernels``. Complex tensors have a last axis of 2."""
    n_batch, n_outputs, n_features = u.shape[0], *skip.shape
    y = u.new_empty(n_batch, n_outputs, n_features)
    x, z = state.new_empty(state.shape), state.new_empty(y.shape)
    tensors = _contiguous(state=state, a=a, b=b, p=p, q=q, c=c, skip=skip)
    arguments = {**pointers(u=u, y=y, x=x, z=z), **tensors, **_sizes(u, c)}
    launch(step_kernel, _signal_grid(u), arguments, {"GELU": gelu, **_BLOCKS}, _N_WARPS)
    return y, x, z


@torch.library.custom_op("sashimi_kernels::step_backward", mutates_args=())
def _step_backward(
    dy: Tensor,
    dx: Tensor,
    u: Tensor,
    state: Tensor,
    a: Tensor,
    b: Tensor,
    p: Tensor | None,
    q: Tensor | None,
    c: Tensor,
    skip: Tensor,
    x: Tensor,
    z: Tensor,
    gelu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of u, state, a, b, p, q, c and skip; those of p and q are empty in a diagonal system."""
    du, dstate, da, db, dc, dskip = (tensor.new_empty(tensor.shape) for tensor in (u, state, a, b, c, skip))
    dp, dq, r, dr = (None if p is None else a.new_empty(shape) for shape in (a.shape, a.shape, u.shape, u.shape))
    read = {**pointers(u=u), **_contiguous(dy=dy, dx=dx, state=state, z=z, c=c)}
    constants = {"GELU": gelu, **_BLOCKS}
    signal = {**read, **_contiguous(a=a, b=b, p=p, q=q, skip=skip), **pointers(du=du, dstate=dstate, r=r, dr=dr)}
    launch(signal_gradients_kernel, _signal_grid(u), {**signal, **_sizes(u, c)}, constants, _N_WARPS)
    gradients = pointers(da=da, db=db, dp=dp, dq=dq, dc=dc, dskip=dskip)
    parameter = {**read, **_contiguous(x=x), **pointers(r=r, dr=dr), **gradients, "n_batch": u.shape[0], **_sizes(u, c)}
    launch(parameter_gradients_kernel, _parameter_grid(a), parameter, constants, _N_WARPS)
    dp, dq = (a.new_empty(0) if gradient is None else gradient for gradient in (dp, dq))
    return du, dstate, da, db, dp, dq, dc, dskip


@_step.register_fake
def _(
    u: Tensor,
    state: Tensor,
    a: Tensor,
    b: Tensor,
    p: Tensor | None,
    q: Tensor | None,
    c: Tensor,
    skip: Tensor,
    gelu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    shape = (u.shape[0], *skip.shape)
    return u.new_empty(shape), state.new_empty(state.shape), state.new_empty(shape)


@_step_backward.register_fake
def _(
    dy: Tensor,
    dx: Tensor,
    u: Tensor,
    state: Tensor,
    a: Tensor,
    b: Tensor,
    p: Tensor | None,
    q: Tensor | None,
    c: Tensor,
    skip: Tensor,
    x: Tensor,
    z: Tensor,
    gelu: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dp, dq = (a.new_empty(0 if p is None else a.shape) for _ in range(2))
    du, dstate, da, db, dc, dskip = (tensor.new_empty(tensor.shape) for tensor in (u, state, a, b, c, skip))
    return du, dstate, da, db, dp, dq, dc, dskip


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *tensors, ctx.gelu = inputs
    _, x, z = output
    ctx.mark_non_differentiable(z)
    ctx.save_for_backward(*tensors, x, z)


def _gradients(ctx: Any, dy: Tensor, dx: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    du, dstate, da, db, dp, dq, dc, dskip = _step_backward(dy, dx, *ctx.saved_tensors, ctx.gelu)
    if ctx.saved_tensors[4] is None:
        dp, dq = None, None
    return du, dstate, da, db, dp, dq, dc, dskip, None


_step.register_autograd(_gradients, setup_context=_keep_inputs)
_step_backward.register_autograd(no_second_derivative("diagonal_step and nplr_step"))


def launches() -> Iterator[Launch]:
    """Yield every form in which the kernels of this module are launched."""
    sizes = dict.fromkeys(("n_features", "n_states", "n_outputs", "u_batch_stride", "u_feature_stride"), "i32")
    f32 = "*fp32"
    for u, pair, gelu in itertools.product(FLOATS, (f32, None), (False, True)):
        constants = {"GELU": gelu, **_BLOCKS}
        parameters = pointers(a=f32, b=f32, p=pair, q=pair, c=f32, skip=f32)
        forward = {**pointers(u=u, state=f32), **parameters, **pointers(y=u, x=f32, z=f32), **sizes}
        yield form(step_kernel, forward, constants, _N_WARPS)
        read = pointers(dy=u, dx=f32, u=u, state=f32, z=f32)
        signal = {**read, **parameters, **pointers(du=u, dstate=f32, r=pair, dr=pair), **sizes}
        yield form(signal_gradients_kernel, signal, constants, _N_WARPS)
        gradients = pointers(da=f32, db=f32, dp=pair, dq=pair, dc=f32, dskip=f32)
        parameter = {**read, **pointers(x=f32, c=f32, r=pair, dr=pair), **gradients, "n_batch": "i32", **sizes}
        yield form(parameter_gradients_kernel, parameter, constants, _N_WARPS)


def _pairs(x: Tensor) -> Tensor:
    """Convert a complex tensor to pairs of float32 on a last axis of 2."""
    return torch.view_as_real(x.to(torch.complex64).resolve_conj())


def _contiguous(**tensors: Tensor | None) -> dict[str, Tensor | None]:
    return pointers(**{name: None if tensor is None else tensor.contiguous() for name, tensor in tensors.items()})


def _sizes(u: Tensor, c: Tensor) -> dict[str, int]:
    n_outputs, n_features, n_states, _ = c.shape
    sizes = {"n_features": n_features, "n_states": n_states, "n_outputs": n_outputs}
    return {**sizes, "u_batch_stride": u.stride(0), "u_feature_stride": u.stride(1)}


def _signal_grid(u: Tensor) -> tuple[int, int]:
    return triton.cdiv(u.shape[1], _BLOCKS["BLOCK_H"]), u.shape[0]


def _parameter_grid(a: Tensor) -> tuple[int, int]:
    return triton.cdiv(a.shape[0], _BLOCKS["BLOCK_H"]), triton.cdiv(a.shape[1], _BLOCKS["BLOCK_N"])
