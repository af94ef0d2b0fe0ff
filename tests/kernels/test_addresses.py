"""Tests of the addresses that kernels load and store, in Triton's interpreter."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", reason="the triton package is not installed")

import triton
import triton.language as tl

import sashimi_kernels as kernels
from sashimi_kernels.aot import every_launch
from sashimi_kernels.triton_backend.launch import launch
from sashimi_kernels.workloads import Sizes, workloads
from tests.kernels.address_checker import AddressError, checked_addresses

pytestmark = pytest.mark.skipif(not triton.knobs.runtime.interpret, reason="needs Triton's interpreter")

# Odd sizes in several tiles; only ones; more channels than a tile, at a length that is a multiple of 8 and not of 16.
ODD, ONES, WIDE = Sizes(2, 3, 5, 139), Sizes(1, 1, 1, 1), Sizes(2, 130, 1, 24)
CHANNELWISE = ("scalar_norm", "layer_norm", "gated_residual")


def cases() -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield operations by name. Those of the benchmark are included with their gradients; add what it does not run."""
    for sizes, dtype in ((ODD, torch.float32), (ODD, torch.bfloat16), (ONES, torch.float32), (WIDE, torch.bfloat16)):
        for workload in workloads(sizes, dtype, "cpu"):
            if sizes is not WIDE or workload.operation in CHANNELWISE:
                run = workload.backward if workload.inputs else workload.forward
                yield f"{workload.operation} {sizes} {dtype}", lambda run=run: run("triton")
    yield "adjacent channels", adjacent_channels
    yield "gradients of a norm and its residual", norm_and_residual_gradients
    yield "gradients of steps", step_gradients
    yield "initial states", initial_states
    yield "linear maps", linear_maps


def adjacent_channels() -> None:
    x = torch.randn(2, 19, 3).transpose(1, 2).requires_grad_()
    gates = torch.randn(2, 19, 6).transpose(1, 2).requires_grad_()
    y = kernels.scalar_norm(x, torch.ones(1), torch.ones(1), torch.ones(2, 3), backend="triton")
    z = kernels.gated_residual(gates, y, backend="triton")
    torch.autograd.grad(z, (x, gates), torch.randn(2, 19, 3).transpose(1, 2))


def norm_and_residual_gradients() -> None:
    x = torch.randn(2, 3, 19, requires_grad=True)
    bias = torch.randn(2, 9).split(3, dim=1)[1]
    outputs = kernels.norm_and_residual(x, "layer", torch.ones(3), torch.ones(3), bias, 1e-5, "triton")
    torch.autograd.grad(outputs, x, [torch.randn(2, 3, 19), torch.randn(2, 19, 3).transpose(1, 2)])


def step_gradients() -> None:
    """Both steps with two outputs per feature."""
    a, b, p, q = (x.requires_grad_() for x in torch.randn(4, 3, 5, dtype=torch.complex64))
    state, c = torch.randn(2, 2, 3, 5, dtype=torch.complex64)
    u, skip = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    outputs = kernels.diagonal_step(u, state, a, b, c, skip, True, backend="triton")
    outputs += kernels.nplr_step(u, state, kernels.DiscreteNPLR(a, p, q, b), c, skip, False, backend="triton")
    torch.autograd.grad([x.abs().sum() for x in outputs], (u, skip, a, b, p, q))


def initial_states() -> None:
    dt, a = torch.full((3, 1), 0.1, dtype=torch.float64), torch.full((3, 5), -0.5 + 2j, dtype=torch.complex128)
    system = kernels.discretize_diagonal(dt, a, a, "zoh")
    state, u = torch.randn(2, 3, 5, dtype=torch.complex64), torch.randn(2, 19, 3).transpose(1, 2)
    kernels.diagonal_state(system, u, state, backend="triton")
    kernels.nplr_state(dt, a, a / 10, a / 10, a, u, state, backend="triton")


def linear_maps() -> None:
    """Channels that fill a part of a tile, and 72 channels, which have no tile; several blocks and tiles."""
    for n_channels in (16, 72):
        for workload in workloads(Sizes(2, n_channels, 1, 40), torch.float32, "cpu"):
            if workload.operation in ("gated_linear", "feed_forward"):
                workload.backward("triton")


def test_no_kernel_accesses_a_wrong_address() -> None:
    checked: set[str] = set()
    for name, run in cases():
        with checked_addresses() as started:
            try:
                run()
            except Exception as error:
                raise AssertionError(f"{name}: {error}") from error
        assert started, f"{name} starts no kernel"
        checked.update(started)
    assert checked >= {launch.kernel.__name__ for launch in every_launch()}, "a kernel has no case"


@triton.jit
def copy_kernel(x_ptr, y_ptr, length, shift, step, BLOCK: tl.constexpr):
    """Copy x to y, with stores ``shift`` elements later. The tiles of programs are ``step`` elements apart."""
    offsets = tl.program_id(0) * step + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets, offsets < length)
    tl.store(y_ptr + offsets + shift, x, offsets < length)


@triton.jit
def constant_address_kernel(y_ptr, BLOCK: tl.constexpr):
    offsets = tl.arange(0, BLOCK)
    tl.store(y_ptr + offsets // 2, offsets.to(tl.float32))


def copied(x: Tensor, y: Tensor, shift: int = 0, step: int = 16) -> None:
    arguments = {"x_ptr": x, "y_ptr": y, "length": len(x), "shift": shift, "step": step}
    with checked_addresses():
        launch(copy_kernel, (3,), arguments, {"BLOCK": 16})


def test_a_correct_kernel_passes() -> None:
    x, y = torch.randn(40), torch.zeros(40)
    copied(x, y)
    assert torch.equal(x, y)


def test_a_store_after_the_end_is_found() -> None:
    memory = torch.zeros(41)
    with pytest.raises(Exception, match=r"copy_kernel: program \(2, 0, 0\) has a store outside of a tensor"):
        copied(torch.randn(40), memory[:40], shift=1)


def test_a_load_between_the_elements_of_a_view_is_found() -> None:
    with pytest.raises(Exception, match=r"has a load outside of a tensor"):
        copied(torch.randn(80)[::2], torch.zeros(40))


def test_one_access_to_two_tensors_is_found() -> None:
    memory = torch.zeros(80)
    with pytest.raises(Exception, match=r"has a store outside of a tensor"):
        copied(memory[40:], memory[:40], shift=30)


def test_overlapping_stores_are_found() -> None:
    with pytest.raises(AddressError, match="two programs store the same element"):
        copied(torch.randn(40), torch.zeros(40), step=12)
    with checked_addresses(), pytest.raises(Exception, match="stores an element twice at once"):
        launch(constant_address_kernel, (1,), {"y_ptr": torch.zeros(16)}, {"BLOCK": 16})


def test_a_load_of_what_another_program_stores_is_found() -> None:
    memory = torch.zeros(80)
    with pytest.raises(AddressError, match="loads an element that another one stores"):
        copied(memory[:40], memory[16:56])
