"""Tests of a recurrence step: outputs and gradients of every backend against float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sashimi_kernels as kernels

pytest.importorskip("triton", reason="the triton package is not installed")

# Batch, features, states, outputs; fewer features and states than a block, and several blocks.
SIZES = [(2, 3, 33, 2), (1, 1, 1, 1), (1, 5, 8, 1), (0, 2, 3, 1)]
BOUNDS = {torch.float32: (3e-6, 1e-5), torch.float16: (1e-3, 2e-3), torch.bfloat16: (8e-3, 2e-2)}
STEPS = ["diagonal", "nplr"]
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA or ROCm device")


def step_inputs(kind: str, batch: int, n_features: int, n_states: int, n_outputs: int) -> list[Tensor]:
    """Return u, state, a, b, c, skip and, for the rank-one form, p and q, in float32 and complex64."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int, dtype: torch.dtype = torch.complex64) -> Tensor:
        return torch.randn(*shape, dtype=dtype, generator=generator)

    real = {"dtype": torch.float32}
    matrices = [randn(n_features, n_states) for _ in range(2 if kind == "diagonal" else 4)]
    c = randn(n_outputs, n_features, n_states) / n_states**0.5
    signals = [randn(batch, n_features, **real), randn(batch, n_features, n_states)]
    return [*signals, *matrices[:2], c, randn(n_outputs, n_features, **real), *(x / n_states for x in matrices[2:])]


def step(inputs: list[Tensor], gelu: bool, backend: str) -> tuple[Tensor, Tensor]:
    u, state, a, b, c, skip, *low_rank = inputs
    if not low_rank:
        return kernels.diagonal_step(u, state, a, b, c, skip, gelu, backend)
    return kernels.nplr_step(u, state, kernels.DiscreteNPLR(a, *low_rank, b), c, skip, gelu, backend)


def outputs_and_gradients(inputs: list[Tensor], gelu: bool, backend: str, cotangents: list[Tensor]) -> list[Tensor]:
    inputs = [x.detach().requires_grad_() for x in inputs]
    outputs = step(inputs, gelu, backend)
    cotangents = [given.to(y) for given, y in zip(cotangents, outputs, strict=True)]
    return [*outputs, *torch.autograd.grad(outputs, inputs, cotangents)]


def double(inputs: list[Tensor]) -> list[Tensor]:
    return [x.to(torch.complex128 if x.is_complex() else torch.float64) for x in inputs]


def check(assert_close: Callable, backend: str, inputs: list[Tensor], gelu: bool) -> None:
    """Compare the step with the reference in float64 on the same rounded inputs."""
    u = inputs[0]
    y, x = step(double(inputs), gelu, "reference")
    # Correlated with the outputs, so that no gradient is a small sum of large terms.
    cotangents = [(y / 2 + torch.randn_like(y)).to(u.dtype), x / 2 + torch.randn_like(x)]
    actual = outputs_and_gradients(inputs, gelu, backend, cotangents)
    expected = outputs_and_gradients(double(inputs), gelu, "reference", cotangents)
    assert [got.dtype for got in actual] == [u.dtype, torch.complex64, *(x.dtype for x in inputs)]
    for index, (got, wanted) in enumerate(zip(actual, expected, strict=True)):
        assert_close(str(index), got.resolve_conj(), wanted.resolve_conj(), *BOUNDS[u.dtype])


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(
    ("gelu", "dtype"), [(False, torch.float32), (True, torch.float32), (True, torch.float16)], ids=str
)
@pytest.mark.parametrize(("batch", "n_features", "n_states", "n_outputs"), SIZES)
@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_step(
    assert_close: Callable,
    backend: str,
    kind: str,
    batch: int,
    n_features: int,
    n_states: int,
    n_outputs: int,
    gelu: bool,
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(1)
    u, *rest = step_inputs(kind, batch, n_features, n_states, n_outputs)
    check(assert_close, backend, [u.to(dtype), *rest], gelu)


def test_reference_steps_match_the_recurrence(stable_system: Callable) -> None:
    """Steps over all samples give the state of ``diagonal_state`` and ``nplr_state``."""
    system = stable_system(2, 5)
    u = torch.randn(3, 2, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    c, skip = torch.ones(1, 2, 5, dtype=torch.complex128), torch.zeros(1, 2, dtype=torch.float64)
    log_a, b = kernels.discretize_diagonal(system["dt"], system["a"], system["b"], "zoh")
    nplr = kernels.discretize_nplr(**system)
    x = z = torch.zeros(3, 2, 5, dtype=torch.complex128)
    for sample in u.unbind(-1):
        y, x = kernels.diagonal_step(sample, x, torch.exp(log_a), b, c, skip, backend="reference")
        _, z = kernels.nplr_step(sample, z, nplr, c, skip, backend="reference")
        torch.testing.assert_close(y[:, 0], 2 * x.real.sum(-1))
    diagonal = kernels.DiscreteDiagonal(log_a, b)
    torch.testing.assert_close(x, kernels.diagonal_state(diagonal, u, backend="reference"))
    torch.testing.assert_close(z, kernels.nplr_state(**system, u=u, backend="reference"))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("kind", STEPS)
@pytest.mark.parametrize("backend", ["torch", "triton"])
def test_strided_and_conjugated_inputs(assert_close: Callable, backend: str, kind: str) -> None:
    """The inputs are a column of a longer signal, transposed states, conjugate views and an expanded C."""
    torch.manual_seed(1)
    u, state, *matrices, c, skip = step_inputs(kind, 2, 3, 5, 2)[:6]
    low_rank = step_inputs(kind, 2, 3, 5, 2)[6:]
    u = u.unsqueeze(-1).repeat(1, 1, 4)[..., 2]
    state = state.transpose(1, 2).contiguous().transpose(1, 2).conj()
    c, skip = c[:1].expand(2, 3, 5), skip.t().contiguous().t()
    check(assert_close, backend, [u, state, *(x.conj() for x in matrices), c, skip, *low_rank], gelu=True)


@pytest.mark.parametrize("kind", STEPS)
def test_torch_gradients(kind: str) -> None:
    inputs = [x.requires_grad_() for x in double(step_inputs(kind, 2, 2, 3, 2))]
    assert torch.autograd.gradcheck(lambda *inputs: step(list(inputs), True, "torch"), inputs)


@pytest.mark.parametrize(("backend", "kind"), [("torch", "diagonal"), ("triton", "diagonal"), ("triton", "nplr")])
def test_compiled_as_one_graph(assert_close: Callable, backend: str, kind: str) -> None:
    torch.manual_seed(1)
    inputs = [x.requires_grad_() for x in step_inputs(kind, 1, 2, 3, 1)]

    def two_steps(*inputs: Tensor) -> Tensor:
        """Return the output of two steps; the state of the second is not used."""
        u, state, *rest = inputs
        y, state = step([u, state, *rest], True, backend)
        y, _ = step([y[:, 0], state, *rest], False, backend)
        return y

    expected = two_steps(*inputs)
    cotangent = torch.randn_like(expected)
    torch.compiler.reset()
    actual = torch.compile(two_steps, fullgraph=True, backend="aot_eager")(*inputs)
    assert_close("output", actual, expected, 1e-6, 1e-6)
    gradients = (torch.autograd.grad(y, inputs, cotangent) for y in (actual, expected))
    for got, wanted in zip(*gradients, strict=True):
        assert_close("gradient", got.resolve_conj(), wanted.resolve_conj(), 1e-5, 1e-5)


@pytest.mark.parametrize(("backend", "dtype"), [("torch", torch.bfloat16), ("triton", torch.float16)], ids=str)
@pytest.mark.parametrize("kind", STEPS)
def test_autocast_rounds_the_output_only(assert_close: Callable, kind: str, backend: str, dtype: torch.dtype) -> None:
    u, *rest = step_inputs(kind, 2, 3, 5, 1)
    u = u.to(dtype)
    _, expected = step(double([u, *rest]), True, "reference")
    with torch.autocast("cpu", dtype):
        y, x = step([u, *rest], True, backend)
    assert y.dtype == dtype
    assert_close("state", x, expected, 1e-6, 1e-6)


@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("kind", STEPS)
def test_inference_does_not_change_the_inputs(kind: str, backend: str) -> None:
    inputs = step_inputs(kind, 2, 3, 4, 1)
    before = [x.clone() for x in inputs]
    with torch.no_grad():
        step(inputs, True, backend)
    assert all(torch.equal(x, y) for x, y in zip(inputs, before, strict=True))


def test_shapes_must_fit() -> None:
    u, state, a, b, c, skip, *_ = step_inputs("nplr", 2, 3, 4, 1)
    with pytest.raises(ValueError, match=r"state of shape \(2, 3, 4\), got \(1, 3, 4\)"):
        kernels.diagonal_step(u, state[:1], a, b, c, skip)
    with pytest.raises(ValueError, match=r"v of shape \(3, 4\), got \(3, 3\)"):
        kernels.nplr_step(u, state, kernels.DiscreteNPLR(a, a, a[:, :3], b), c, skip)


def test_triton_refuses_float64() -> None:
    with pytest.raises(kernels.BackendUnavailableError, match="float64"):
        step(double(step_inputs("diagonal", 2, 3, 4, 1)), False, "triton")


@pytest.mark.gpu
@GPU
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sizes", [(4, 64, 32, 1), (1, 65, 33, 2), (3, 7, 130, 1)], ids=str)
@pytest.mark.parametrize("kind", STEPS)
def test_on_a_gpu(assert_close: Callable, kind: str, sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    u, *rest = (x.cuda() for x in step_inputs(kind, *sizes))
    check(assert_close, "triton", [u.to(dtype), *rest], gelu=True)
