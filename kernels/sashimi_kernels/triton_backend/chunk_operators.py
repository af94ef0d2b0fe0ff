"""Matrices of a state space for chunks of samples, as a custom operation with gradients.

The forward pass has two kernels: the trajectories that ``write``, ``read`` and ``lags`` consist of, and ``advance``
from one of them. The backward pass has three, and reads the trajectories from ``write`` and ``read``. All kernels
compute in float64 and store the operators in float32, directly in the layout of ``ChunkOperators``.
"""

from collections.abc import Iterator
from typing import Any

import torch
import triton
from torch import Tensor

from sashimi_kernels.chunks import CHUNK, ChunkOperators
from sashimi_kernels.derivatives import no_second_derivative
from sashimi_kernels.discretization import DiscreteDiagonal, DiscreteNPLR
from sashimi_kernels.errors import BackendUnavailableError
from sashimi_kernels.torch_backend.krylov import dense_matrix, rotation
from sashimi_kernels.triton_backend.arguments import form, pointers
from sashimi_kernels.triton_backend.launch import Launch, launch
from sashimi_kernels.triton_backend.operator_advance import (
    advance_kernel,
    inner_gradient_kernel,
    outer_gradient_kernel,
)
from sashimi_kernels.triton_backend.operator_trajectories import trajectories_kernel, trajectory_gradients_kernel

WARPS = {32: 1, 64: 2, 128: 4}
"""Number of warps of the trajectories by BLOCK_N, the number of complex states in registers."""

TILE = {"BLOCK_T": 16, "BLOCK_K": 32, "BLOCK_N": 16}
"""Blocks of ``advance`` and its gradients: steps of the chunk, real states and complex states."""


def chunk_operators(
    system: DiscreteDiagonal | DiscreteNPLR, c: Tensor, skip: Tensor | None, reverse: Tensor | None, shift: int
) -> ChunkOperators:
    """Return the operators in float32; ``step`` has the precision of ``system``."""
    if c.shape[1] > max(WARPS):
        raise BackendUnavailableError(
            f"kernel backend 'triton' holds up to {max(WARPS)} states per feature in registers, got {c.shape[1]}: "
            "choose another one with backend="
        )
    if isinstance(system, DiscreteDiagonal):
        a, b, u, v = torch.exp(system.log_a), system.b, None, None
        step = rotation(a) if reverse is None else None
    else:
        a, u, v, b = system
        step = dense_matrix(system) if reverse is None else None
    vectors = (None if x is None else _real(x.to(torch.complex128)) for x in (a, b, u, v))
    outputs = (None if x is None else _real(x.to(torch.complex64)) for x in (c, reverse))
    skip = None if skip is None else skip.float()
    lags, write, read, advance, _ = _chunk_operators(*vectors, *outputs, skip, shift)
    return ChunkOperators(lags, write, read, advance, step)


@torch.library.custom_op("sashimi_kernels::chunk_operators", mutates_args=())
def _chunk_operators(
    a: Tensor,
    b: Tensor,
    u: Tensor | None,
    v: Tensor | None,
    c: Tensor,
    reverse: Tensor | None,
    skip: Tensor | None,
    shift: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return lags, write, read and advance, and the rows v Ā^t (H, T, n), empty for a diagonal system.

    Args:
        a, b, u, v: float64 (H, N, 2). u and v are None for a diagonal system.
        c, reverse: float32 (H, N, 2).
        skip: float32 (H,).
        shift: 0 or 1.
    """
    vectors = _vectors(a, b, u, v, c, reverse)
    lags, write, read, advance, inner = _outputs(c, reverse, u)
    outputs = pointers(write=write, read=read, lags=lags, inner=None if u is None else inner)
    (n_features, n_states), sizes = c.shape[:2], {"n_states": c.shape[1], "shift": shift}
    constants, options = _constants(n_states)
    launch(trajectories_kernel, (n_features,), {**vectors, **outputs, **sizes}, constants, **options)
    if skip is not None:
        lags[:, CHUNK - 1].add_(skip)
    factors = _selected(vectors, "a", "u") | pointers(inner=outputs["inner_ptr"], advance=advance)
    grid = (n_features, triton.cdiv(2 * n_states, TILE["BLOCK_K"]), triton.cdiv(n_states, TILE["BLOCK_N"]))
    launch(advance_kernel, grid, {**factors, "n_states": n_states}, {"CHUNK": CHUNK} | TILE)
    return lags, write, read, advance, inner


@torch.library.custom_op("sashimi_kernels::chunk_operators_backward", mutates_args=())
def _chunk_operators_backward(
    dlags: Tensor,
    dwrite: Tensor,
    dread: Tensor,
    dadvance: Tensor,
    a: Tensor,
    b: Tensor,
    u: Tensor | None,
    v: Tensor | None,
    c: Tensor,
    reverse: Tensor | None,
    write: Tensor,
    read: Tensor,
    inner: Tensor,
    shift: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of a, b, u, v, c and reverse, empty for those that are None."""
    vectors = _vectors(a, b, u, v, c, reverse)
    gradients = _gradients_like(a, b, u, v, c, reverse)
    names = ("a", "b", "u", "v", "c", "reverse")
    outputs = {f"d{name}_ptr": x if x.numel() else None for name, x in zip(names, gradients, strict=True)}
    dlags, dwrite, dread, dadvance = (x.contiguous() for x in (dlags, dwrite, dread, dadvance))
    (n_features, n_states), tile = c.shape[:2], {"CHUNK": CHUNK} | TILE
    row_blocks, blocks = triton.cdiv(2 * n_states, TILE["BLOCK_K"]), triton.cdiv(n_states, TILE["BLOCK_N"])
    rows = pointers(inner=None, dinner=None) if u is None else pointers(inner=inner, dinner=torch.empty_like(inner))
    factors = _selected(vectors, "a", "u") | {"dadvance_ptr": dadvance, "n_states": n_states}
    if u is not None:
        grid = (n_features, row_blocks, CHUNK // TILE["BLOCK_T"])
        launch(inner_gradient_kernel, grid, factors | _selected(rows, "dinner"), tile, num_warps=8)
    through_outer = factors | _selected(rows, "inner") | _selected(outputs, "da", "du")
    launch(outer_gradient_kernel, (n_features, blocks), through_outer, tile)
    # Of write, the kernel reads one direction.
    operators = pointers(write=write[..., : 2 * n_states], read=read, dwrite=dwrite, dread=dread, dlags=dlags)
    arguments = vectors | rows | operators | outputs
    constants, options = _constants(n_states)
    sizes = {"n_states": n_states, "shift": shift}
    launch(trajectory_gradients_kernel, (n_features,), arguments | sizes, constants, **options)
    return gradients


@_chunk_operators.register_fake
def _(
    a: Tensor,
    b: Tensor,
    u: Tensor | None,
    v: Tensor | None,
    c: Tensor,
    reverse: Tensor | None,
    skip: Tensor | None,
    shift: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _outputs(c, reverse, u)


@_chunk_operators_backward.register_fake
def _(
    dlags: Tensor,
    dwrite: Tensor,
    dread: Tensor,
    dadvance: Tensor,
    a: Tensor,
    b: Tensor,
    u: Tensor | None,
    v: Tensor | None,
    c: Tensor,
    reverse: Tensor | None,
    write: Tensor,
    read: Tensor,
    inner: Tensor,
    shift: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _gradients_like(a, b, u, v, c, reverse)


def _keep(ctx: Any, inputs: tuple, output: tuple[Tensor, ...]) -> None:
    *vectors, skip, shift = inputs
    _, write, read, _, inner = output
    ctx.save_for_backward(*vectors, write, read, inner)
    ctx.shift, ctx.with_skip = shift, skip is not None
    ctx.mark_non_differentiable(inner)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    *vectors, write, read, inner = ctx.saved_tensors
    n_features, n = write.shape[0], 2 * vectors[0].shape[1]
    shapes = (n_features, 2 * CHUNK - 1), write.shape, read.shape, (n_features, n, n)
    given = [write.new_zeros(shape) if x is None else x for x, shape in zip(gradients[:4], shapes, strict=True)]
    found = _chunk_operators_backward(*given, *vectors, write, read, inner, ctx.shift)
    needed = (None if x is None else gradient for x, gradient in zip(vectors, found, strict=True))
    return *needed, given[0][:, CHUNK - 1].contiguous() if ctx.with_skip else None, None


_chunk_operators.register_autograd(_backward, setup_context=_keep)
_chunk_operators_backward.register_autograd(no_second_derivative("chunk_operators"))


def launches() -> Iterator[Launch]:
    """Yield every form in which the kernels of this module are launched."""
    sizes = {"n_states": "i32", "shift": "i32"}
    for low_rank in ("*fp64", None):
        rows = None if low_rank is None else "*fp32"
        factors = pointers(a="*fp64", u=low_rank, inner=rows) | {"n_states": "i32"}
        yield _tiled_form(advance_kernel, factors | pointers(advance="*fp32"))
        gradients = pointers(dadvance="*fp32", da="*fp64", du=low_rank)
        yield _tiled_form(outer_gradient_kernel, factors | gradients)
        for block in WARPS:
            constants, options = _constants(block)
            for reverse in ("*fp32", None):
                system = pointers(a="*fp64", b="*fp64", u=low_rank, v=low_rank, c="*fp32", reverse=reverse)
                operators = pointers(write="*fp32", read="*fp32", inner=rows)
                forward = system | operators | pointers(lags="*fp32") | sizes
                yield form(trajectories_kernel, forward, constants, **options)
                inputs = pointers(dwrite="*fp32", dread="*fp32", dlags="*fp32", dinner=rows)
                outputs = pointers(da="*fp64", db="*fp64", du=low_rank, dv=low_rank, dc="*fp32", dreverse=reverse)
                backward = system | operators | inputs | outputs | sizes
                yield form(trajectory_gradients_kernel, backward, constants, **options)
    inner = pointers(a="*fp64", u="*fp64", dadvance="*fp32", dinner="*fp32") | {"n_states": "i32"}
    yield _tiled_form(inner_gradient_kernel, inner, num_warps=8)


def _tiled_form(kernel: Any, types: dict[str, str | None], num_warps: int = 4) -> Launch:
    return form(kernel, types, {"CHUNK": CHUNK} | TILE, num_warps)


def _constants(n_states: int) -> tuple[dict[str, int], dict[str, int]]:
    """Return constants and launch options of the trajectories."""
    block = min(size for size in WARPS if size >= n_states)
    return {"CHUNK": CHUNK, "BLOCK_N": block}, {"num_warps": WARPS[block]}


def _vectors(
    a: Tensor, b: Tensor, u: Tensor | None, v: Tensor | None, c: Tensor, reverse: Tensor | None
) -> dict[str, Tensor | None]:
    vectors = {"a": a, "b": b, "u": u, "v": v, "c": c, "reverse": reverse}
    return pointers(**{name: None if x is None else x.contiguous() for name, x in vectors.items()})


def _selected(arguments: dict[str, Any], *names: str) -> dict[str, Any]:
    return {f"{name}_ptr": arguments[f"{name}_ptr"] for name in names}


def _outputs(c: Tensor, reverse: Tensor | None, u: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    n_features, n = c.shape[0], 2 * c.shape[1]
    width = n if reverse is None else 2 * n
    lags, advance = c.new_empty(n_features, 2 * CHUNK - 1), c.new_empty(n_features, n, n)
    write, read = (c.new_empty(n_features, CHUNK, width) for _ in range(2))
    return lags, write, read, advance, c.new_empty(0) if u is None else c.new_empty(n_features, CHUNK, n)


def _gradients_like(
    a: Tensor, b: Tensor, u: Tensor | None, v: Tensor | None, c: Tensor, reverse: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    da, db, dc = a.new_empty(a.shape), b.new_empty(b.shape), c.new_empty(c.shape)
    du, dv = (a.new_empty(0 if x is None else x.shape) for x in (u, v))
    return da, db, du, dv, dc, c.new_empty(0 if reverse is None else reverse.shape)


def _real(x: Tensor) -> Tensor:
    return torch.view_as_real(x.resolve_conj())
