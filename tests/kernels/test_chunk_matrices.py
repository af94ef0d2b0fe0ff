"""Tests of the matrices of the chunked convolution, of their launches, and of the arrangement of chunks in tiles."""

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import sashimi_kernels as kernels

chunk_operators = importlib.import_module(
    "sashimi_kernels.torch_backend.chunk_operators"
)  # has a function of this name
# Operations that start no kernel.
VIEWS = {"_conj", "detach", "expand", "permute", "select", "slice", "split", "transpose", "unbind", "unfold"}
VIEWS |= {"unsqueeze", "view", "_unsafe_view", "view_as_complex", "view_as_real", "empty", "new_empty"}


class Launches(TorchDispatchMode):
    """Count the operations that start kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.count += function.overloadpacket.__name__ not in VIEWS
        return function(*arguments, **(options or {}))


@pytest.fixture
def make_system(stable_system: Callable) -> Callable[..., kernels.DiscreteDiagonal | kernels.DiscreteNPLR]:
    def make(kind: str, n_features: int, n: int) -> kernels.DiscreteDiagonal | kernels.DiscreteNPLR:
        parts = stable_system(n_features, n)
        if kind == "diag":
            return kernels.discretize_diagonal(parts["dt"], parts["a"], parts["b"], "zoh")
        return kernels.discretize_nplr(*parts.values())

    return make


def vectors(n_features: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return c, reverse and skip."""
    generator = torch.Generator().manual_seed(5)
    c, reverse = torch.randn(2, n_features, n, dtype=torch.complex128, generator=generator)
    return c, reverse, torch.randn(n_features, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("kind", ["diag", "nplr"])
def test_single_precision_follows_double(make_system: Callable, assert_close: Callable, kind: str) -> None:
    """A factor over a chunk is a power of Ā, which multiplies the rounding errors of Ā by 128."""
    system, (c, reverse, skip) = make_system(kind, 3, 32), vectors(3, 32)
    exact = kernels.chunk_operators(system, c, skip, reverse)
    single = kernels.chunk_operators(system, c.to(torch.complex64), skip, reverse.to(torch.complex64))
    for name, got, expected in zip(exact._fields[:4], single, exact, strict=False):
        assert (got.dtype, expected.dtype) == (torch.float32, torch.float64)
        assert_close(name, got, expected, 2e-7, 5e-7)
    assert (single.step, single.n_directions) == (None, 2)


@pytest.mark.parametrize("kind", ["diag", "nplr"])
def test_features_of_several_layers(make_system: Callable, kind: str) -> None:
    system, (c, _, skip) = make_system(kind, 5, 3), vectors(5, 3)
    part = slice(1, 4)
    together = kernels.chunk_operators(system, c, skip).split([1, 3, 1])[1]
    alone = kernels.chunk_operators(type(system)(*(x[part] for x in system)), c[part], skip[part])
    for got, expected in zip(together, alone, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-12)
    assert kernels.chunk_operators(system, c, skip, c).split([1, 3, 1])[1].step is None


@pytest.mark.parametrize("kind", ["diag", "nplr"])
def test_second_derivatives(monkeypatch: pytest.MonkeyPatch, make_system: Callable, kind: str) -> None:
    monkeypatch.setattr(chunk_operators, "CHUNK", 4)
    system, (c, reverse, skip) = make_system(kind, 1, 1), vectors(1, 1)
    inputs = tuple(x.detach().requires_grad_() for x in (*system, c, skip, reverse))

    def operators(*inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(kernels.chunk_operators(type(system)(*inputs[:-3]), *inputs[-3:])[:4])

    assert torch.autograd.gradcheck(operators, inputs)
    assert torch.autograd.gradgradcheck(operators, inputs)


@pytest.mark.parametrize(("kind", "forward", "backward"), [("nplr", 50, 120), ("diag", 45, 65)])
def test_launches(make_system: Callable, kind: str, forward: int, backward: int) -> None:
    """The number does not depend on the number of features, so the layers of a model share these launches."""
    system, (c, reverse, skip) = make_system(kind, 2, 4), vectors(2, 4)
    inputs = [x.detach().requires_grad_() for x in (*system, c.to(torch.complex64), skip, reverse.to(torch.complex64))]
    with Launches() as launches:
        found = kernels.chunk_operators(type(system)(*inputs[:-3]), *inputs[-3:])[:4]
    assert launches.count <= forward
    weights = [torch.ones_like(x) for x in found]
    with Launches() as launches:
        torch.autograd.grad(found, inputs, weights)
    assert launches.count <= backward


def test_triton_groups_hold_all_chunks_in_few_products() -> None:
    pytest.importorskip("triton", reason="the triton package is not installed")
    from sashimi_kernels.triton_backend.chunk_states import grouping

    for n_batch, n_chunks, programs, rows in ((16, 125, 128, 64), (1, 1, 1, 64), (3, 9, 2, 16), (1, 20000, 4, 64)):
        found = grouping(n_batch, n_chunks, programs, rows)
        assert found.group == 2**found.squarings
        assert found.groups <= rows
        assert found.group * found.groups >= n_chunks > found.group * (found.groups - 1)
        assert found.tiles * (rows // found.groups) >= n_batch
    # Small batches take short groups, so that few products follow each other.
    assert grouping(1, 125, 128, 64).group < grouping(16, 125, 128, 64).group
    assert grouping(16, 125, 128, 64).sequential_products(128) < 125
