"""Final state of a normal-plus-low-rank state space by its O(N) recurrence

    x[t] = a x[t-1] - u 2 Re(v · x[t-1]) + b s[t]        for the input s and the system a, u, v, b of DiscreteNPLR.

There is one program per batch element and feature, with the whole state in registers. It computes in float64. With Ā in
float32, slowly decaying states would accumulate L rounding errors (7e-5 for HiPPO-LegS at dt = 1e-4 after 16,000
samples). float64 takes little extra time, because the latency of the sum over n dominates a recurrence step, not the
arithmetic. The backward pass recomputes the state in float32 by the matrix form of the ``torch`` backend and
differentiates it. This form needs no intermediate states.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from sashimi_kernels.derivatives import gradients_of
from sashimi_kernels.discretization import discretize_nplr
from sashimi_kernels.errors import BackendUnavailableError
from sashimi_kernels.torch_backend.generation import nplr_state as nplr_state_in_blocks
from sashimi_kernels.triton_backend.arguments import FLOATS, stride_types, strides
from sashimi_kernels.triton_backend.launch import Launch, launch

WARPS = {32: 1, 128: 1, 512: 4}  # number of warps by BLOCK_N


@triton.jit
def nplr_state_kernel(
    signal_ptr,  # (B, H, L), any strides
    system_ptr,  # (H, N, 8): a, u, v, b
    start_ptr,  # (B, H, N, 2)
    state_ptr,  # (B, H, N, 2)
    n_features,
    n_states,
    length,
    signal_batch_stride,
    signal_channel_stride,
    signal_position_stride,
    BLOCK_N: tl.constexpr,
):
    pid_b, pid_h = tl.program_id(0), tl.program_id(1)
    n_offsets = tl.arange(0, BLOCK_N)
    n_mask = n_offsets < n_states
    system_ptrs = system_ptr + (pid_h * n_states + n_offsets) * 8
    a_real = tl.load(system_ptrs, mask=n_mask, other=0.0)
    a_imag = tl.load(system_ptrs + 1, mask=n_mask, other=0.0)
    u_real = tl.load(system_ptrs + 2, mask=n_mask, other=0.0)
    u_imag = tl.load(system_ptrs + 3, mask=n_mask, other=0.0)
    v_real = tl.load(system_ptrs + 4, mask=n_mask, other=0.0)
    v_imag = tl.load(system_ptrs + 5, mask=n_mask, other=0.0)
    b_real = tl.load(system_ptrs + 6, mask=n_mask, other=0.0)
    b_imag = tl.load(system_ptrs + 7, mask=n_mask, other=0.0)
    state_offsets = ((pid_b.to(tl.int64) * n_features + pid_h) * n_states + n_offsets) * 2
    real = tl.load(start_ptr + state_offsets, mask=n_mask, other=0.0).to(tl.float64)
    imag = tl.load(start_ptr + state_offsets + 1, mask=n_mask, other=0.0).to(tl.float64)
    signal_ptr += pid_b.to(tl.int64) * signal_batch_stride + pid_h * signal_channel_stride
    for _ in range(length):
        sample = tl.load(signal_ptr).to(tl.float64)
        feedback = 2 * tl.sum(v_real * real - v_imag * imag, 0)
        next_real = a_real * real - a_imag * imag - u_real * feedback + b_real * sample
        imag = a_real * imag + a_imag * real - u_imag * feedback + b_imag * sample
        real = next_real
        signal_ptr += signal_position_stride
    tl.store(state_ptr + state_offsets, real, mask=n_mask)
    tl.store(state_ptr + state_offsets + 1, imag, mask=n_mask)


def nplr_state(
    dt: Tensor, a: Tensor, p: Tensor, q: Tensor, b: Tensor, u: Tensor, state: Tensor | None = None
) -> Tensor:
    """Run the recurrence sample by sample in one kernel."""
    if a.shape[1] > max(WARPS):
        raise BackendUnavailableError(
            f"kernel backend 'triton' supports up to {max(WARPS)} states per feature in registers, got {a.shape[1]}: "
            "choose another one with backend="
        )
    system = (_real(x.to(torch.complex128)) for x in (a, p, q, b))
    start = None if state is None else _real(state.to(torch.complex64))
    return torch.view_as_complex(nplr_state_recurrence(u, dt.double(), *system, start))


@torch.library.custom_op("sashimi_kernels::nplr_state", mutates_args=())
def nplr_state_recurrence(
    u: Tensor, dt: Tensor, a: Tensor, p: Tensor, q: Tensor, b: Tensor, state: Tensor | None
) -> Tensor:
    """Compute :func:`nplr_state` on real tensors.

    Args:
        u: input, real (B, H, L).
        dt: float64 (H, 1).
        a, p, q, b: float64 (H, N, 2).
        state: float32 (B, H, N, 2), or None.

    Returns:
        float32 (B, H, N, 2).
    """
    (n_features, n_states), length = a.shape[:2], u.shape[-1]
    out = _like_state(u, a)
    start = torch.zeros_like(out) if state is None else state.contiguous()
    system = torch.stack(discretize_nplr(dt, *(torch.view_as_complex(x.contiguous()) for x in (a, p, q, b))), dim=-1)
    arguments = {
        **{"signal_ptr": u, "system_ptr": torch.view_as_real(system), "start_ptr": start, "state_ptr": out},
        **{"n_features": n_features, "n_states": n_states, "length": length},
        **strides("signal", u),
    }
    block = min(size for size in WARPS if size >= n_states)
    launch(nplr_state_kernel, (u.shape[0], n_features), arguments, {"BLOCK_N": block}, num_warps=WARPS[block])
    return out


@nplr_state_recurrence.register_fake
def _(u: Tensor, dt: Tensor, a: Tensor, p: Tensor, q: Tensor, b: Tensor, state: Tensor | None) -> Tensor:
    return _like_state(u, a)


def _keep(ctx: Any, inputs: tuple, output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return gradients_of(_matrix_form, ctx.saved_tensors, ctx.needs_input_grad, gradient)


def _matrix_form(u: Tensor, dt: Tensor, a: Tensor, p: Tensor, q: Tensor, b: Tensor, state: Tensor | None) -> Tensor:
    """Compute :func:`nplr_state_recurrence` with the differentiable implementation of the torch backend."""
    a, p, q, b = (torch.view_as_complex(x.contiguous()) for x in (a, p, q, b))
    start = None if state is None else torch.view_as_complex(state.contiguous())
    return torch.view_as_real(nplr_state_in_blocks(dt, a, p, q, b, u, start))


nplr_state_recurrence.register_autograd(_backward, setup_context=_keep)


def launches() -> Iterator[Launch]:
    """Yield every form in which the kernel of this module is launched."""
    states = {"system_ptr": "*fp64", "start_ptr": "*fp32", "state_ptr": "*fp32"}
    sizes = {**dict.fromkeys(("n_features", "n_states", "length"), "i32"), **stride_types("signal")}
    for dtype in FLOATS:
        for block, warps in WARPS.items():
            signature = {"signal_ptr": dtype, **states, **sizes}
            yield Launch(nplr_state_kernel, signature, {"BLOCK_N": block}, warps, 2, matrix=False)


def _like_state(u: Tensor, a: Tensor) -> Tensor:
    return u.new_empty((u.shape[0], *a.shape), dtype=torch.float32)


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x.resolve_conj())
