"""Tests of the operators of the chunked convolution: values, gradients and launches of every backend."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sashimi_kernels as kernels
from sashimi_diffusion.ssm.initialization import initial_system
from sashimi_kernels.counters import Counter
from sashimi_kernels.errors import BackendUnavailableError

SYSTEMS = {"diag": kernels.DiscreteDiagonal, "nplr": kernels.DiscreteNPLR}
OPERATORS = ("lags", "write", "read", "advance", "step")
# With a reverse direction, shift
DIRECTIONS = {"forward": (False, 1), "both": (True, 1), "both from here": (True, 0)}
every_system = pytest.mark.parametrize("kind", SYSTEMS)
every_direction = pytest.mark.parametrize("directions", DIRECTIONS)


def legs(kind: str, n_features: int, n: int, directions: str = "both", skip: bool = True) -> dict[str, Tensor]:
    """Return the arguments for HiPPO-LegS with dt from 1e-3 to 1e-1 in float64; those of the system are "system.b"…"""
    a, b, p = (x.expand(n_features, -1) for x in initial_system("legs", 2 * n, "nplr"))
    dt = torch.logspace(-3, -1, n_features, dtype=torch.float64).unsqueeze(-1)
    system: kernels.DiscreteDiagonal | kernels.DiscreteNPLR
    if kind == "diag":
        system = kernels.discretize_diagonal(dt, a, b, "zoh")
    else:
        system = kernels.discretize_nplr(dt, a, p, p.conj(), b)
    generator = torch.Generator().manual_seed(n)
    c, reverse = torch.randn(2, n_features, n, dtype=torch.complex128, generator=generator)
    inputs = {f"system.{name}": x.resolve_conj().clone() for name, x in system._asdict().items()}
    inputs["c"] = c
    if skip:
        inputs["skip"] = torch.randn(n_features, dtype=torch.float64, generator=generator)
    if DIRECTIONS[directions][0]:
        inputs["reverse"] = reverse
    return inputs


def operators_of(inputs: dict[str, Tensor], directions: str, backend: str, single: bool) -> kernels.ChunkOperators:
    """Compute the operators with output vectors in single precision or in double precision."""
    parts = [x for name, x in inputs.items() if name.startswith("system.")]
    c, skip, reverse = (inputs.get(name) for name in ("c", "skip", "reverse"))
    if single:
        c, skip = c.to(torch.complex64), None if skip is None else skip.float()
        reverse = None if reverse is None else reverse.to(torch.complex64)
    system = (kernels.DiscreteDiagonal if len(parts) == 2 else kernels.DiscreteNPLR)(*parts)
    return kernels.chunk_operators(system, c, skip, reverse, DIRECTIONS[directions][1], backend)


def results(inputs: dict[str, Tensor], directions: str, backend: str, single: bool) -> dict[str, Tensor]:
    """Return the operators and the gradients of their randomly weighted sum with respect to all inputs."""
    inputs = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    operators = operators_of(inputs, directions, backend, single)
    outputs = {name: x for name, x in zip(OPERATORS, operators, strict=True) if x is not None}
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(x.shape, dtype=torch.float64, generator=generator).to(x.dtype) for x in outputs.values()]
    gradients = torch.autograd.grad(list(outputs.values()), list(inputs.values()), weights)
    return {**outputs, **{f"gradient of {name}": x.resolve_conj() for name, x in zip(inputs, gradients, strict=True)}}


@every_system
@every_direction
def test_torch_matches_the_powers_of_the_matrix(assert_close: Callable, kind: str, directions: str) -> None:
    inputs = legs(kind, 3, 5, directions)
    expected = results(inputs, directions, "reference", single=False)
    for name, got in results(inputs, directions, "torch", single=False).items():
        assert_close(name, got, expected[name], 1e-11, 1e-11)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize(
    ("kind", "n_features", "n", "directions", "skip"),
    [
        ("nplr", 1, 32, "both", True),
        ("nplr", 2, 5, "both from here", False),
        ("nplr", 1, 1, "forward", True),
        ("diag", 2, 5, "both", False),
        ("diag", 1, 3, "both from here", True),
        ("diag", 1, 1, "forward", False),
    ],
)
def test_triton_is_as_exact_as_float32(
    assert_close: Callable, kind: str, n_features: int, n: int, directions: str, skip: bool
) -> None:
    pytest.importorskip("triton", reason="the triton package is not installed")
    inputs = legs(kind, n_features, n, directions, skip)
    actual = results(inputs, directions, "triton", single=True)
    expected = results(inputs, directions, "torch", single=False)
    assert actual.keys() == expected.keys()
    for name, got in actual.items():
        single = name in OPERATORS[:4]
        assert got.dtype == (torch.float32 if single else expected[name].dtype), name
        bound = 2e-7 if single else 5e-7
        assert_close(name, got, expected[name], bound, bound)


@pytest.mark.parametrize("n", [40, pytest.param(100, marks=pytest.mark.slow)])
def test_triton_with_many_states(assert_close: Callable, n: int) -> None:
    """The states need more than one warp, and the products more than one block."""
    pytest.importorskip("triton", reason="the triton package is not installed")
    inputs = legs("nplr", 1, n)
    expected = results(inputs, "both", "torch", single=False)
    for name, got in results(inputs, "both", "triton", single=True).items():
        assert_close(name, got, expected[name], 5e-7, 5e-7)


def test_triton_refuses_too_many_states() -> None:
    pytest.importorskip("triton", reason="the triton package is not installed")
    with pytest.raises(BackendUnavailableError, match="up to 128 states per feature in registers, got 129"):
        operators_of(legs("diag", 1, 129), "both", "triton", single=True)


@every_system
def test_the_convolution_with_operators_of_triton_matches_the_recurrence(kind: str) -> None:
    """Errors of the operators would grow over the chunks."""
    pytest.importorskip("triton", reason="the triton package is not installed")
    inputs = legs(kind, 3, 16, "forward")
    u = torch.randn(1, 3, 4000, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    y, final = kernels.chunked_convolution(
        u.float(), operators_of(inputs, "forward", "triton", single=True), backend="torch"
    )
    system = [x for name, x in inputs.items() if name.startswith("system.")]
    x, expected = torch.zeros(3, 16, dtype=torch.complex128), []
    for sample in u[0].unbind(-1):
        if kind == "diag":
            x = torch.exp(system[0]) * x
        else:
            a, left, right, _ = system
            x = a * x - left * 2 * (right * x).real.sum(-1, keepdim=True)
        x = x + inputs["system.b"] * sample.unsqueeze(-1)
        expected.append(2 * (inputs["c"] * x).real.sum(-1) + inputs["skip"] * sample)
    wanted = torch.stack(expected, dim=-1)
    assert (y[0] - wanted).abs().max() < 2e-6 * wanted.abs().max()
    assert (final[0] - x).abs().max() < 2e-6 * x.abs().max()


@pytest.mark.parametrize("name", ["read", "advance"])
def test_gradient_of_one_operator(assert_close: Callable, name: str) -> None:
    """The other operators have no gradient. The sum has strides of zero."""
    pytest.importorskip("triton", reason="the triton package is not installed")

    def gradients(backend: str, single: bool) -> tuple[Tensor, ...]:
        inputs = {key: x.requires_grad_() for key, x in legs("nplr", 1, 2).items()}
        operator = getattr(operators_of(inputs, "both", backend, single), name)
        found = torch.autograd.grad(operator.sum(), list(inputs.values()), allow_unused=True, materialize_grads=True)
        return tuple(x.resolve_conj() for x in found)

    for got, expected in zip(gradients("triton", True), gradients("torch", False), strict=True):
        assert_close(name, got, expected, 5e-7, 5e-7)


def test_torch_compile(assert_close: Callable) -> None:
    pytest.importorskip("triton", reason="the triton package is not installed")
    inputs = {name: x.requires_grad_() for name, x in legs("nplr", 1, 2).items()}

    def loss(*values: Tensor) -> Tensor:
        operators = operators_of(dict(zip(inputs, values, strict=True)), "both", "triton", single=True)
        return sum(x.square().sum() for x in operators if x is not None)

    torch.compiler.reset()
    given = tuple(inputs.values())
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    actual = torch.autograd.grad(compiled(*given), given)
    for name, got, expected in zip(inputs, actual, torch.autograd.grad(loss(*given), given), strict=True):
        assert_close(name, got, expected, 1e-6, 1e-6)


def test_triton_refuses_second_derivatives() -> None:
    pytest.importorskip("triton", reason="the triton package is not installed")
    inputs = {name: x.requires_grad_() for name, x in legs("diag", 1, 1, "forward").items()}
    write = operators_of(inputs, "forward", "triton", single=True).write
    (gradient,) = torch.autograd.grad(write.square().sum(), inputs["system.b"], create_graph=True)
    with pytest.raises(RuntimeError, match="chunk_operators has no second derivative: use backend='torch'"):
        torch.autograd.grad(gradient.abs().sum(), inputs["system.b"])


@every_system
def test_launches_and_bytes(kind: str) -> None:
    """There are a few launches for any number of features, and operators are read and written about once."""
    pytest.importorskip("triton", reason="the triton package is not installed")
    inputs = {name: x.to("meta") for name, x in legs(kind, 64, 32).items()}
    for name in ("c", "skip", "reverse"):
        inputs[name] = inputs[name].to(torch.complex64 if inputs[name].is_complex() else torch.float32)
    inputs = {name: x.requires_grad_() for name, x in inputs.items()}
    with Counter() as counts:
        operators = operators_of(inputs, "both", "triton", single=False)
    assert counts.launches <= 5, counts.operations
    outputs = [x for x in operators if x is not None]
    weights = [torch.empty_like(x) for x in outputs]
    size = sum(x.numel() * x.element_size() for x in outputs)
    assert counts.bytes < 2 * size
    with Counter() as counts:
        torch.autograd.grad(outputs, list(inputs.values()), weights)
    assert counts.launches <= 6, counts.operations
    assert counts.bytes < 4 * size
