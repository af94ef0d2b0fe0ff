"""Tests of second derivatives: exact in the torch and reference backends, refused by the Triton backend."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import sashimi_kernels as kernels

Function = Callable[..., Tensor]
H, N = 2, 2


def real(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()


def complex_(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.complex128, generator=generator).requires_grad_()


def log_a() -> Tensor:
    return torch.tensor(
        [[-0.1 + 0.5j, -0.2 - 1.0j], [-0.3 + 1.5j, -0.1 + 0.2j]], dtype=torch.complex128
    ).requires_grad_()


def dt() -> Tensor:
    return torch.tensor([[0.1], [0.05]], dtype=torch.float64).requires_grad_()


def flat(*tensors: Tensor | None) -> Tensor:
    """Return all results as one real vector."""
    return torch.cat([(torch.view_as_real(x) if x.is_complex() else x).flatten() for x in tensors if x is not None])


def scalar_norm(backend: str, *inputs: Tensor) -> Tensor:
    return kernels.scalar_norm(*inputs, backend=backend)


def layer_norm(backend: str, *inputs: Tensor) -> Tensor:
    return kernels.layer_norm(*inputs, backend=backend)


def gated_residual(backend: str, x: Tensor, residual: Tensor) -> Tensor:
    return kernels.gated_residual(x, residual, backend)


def gated_residual_of_adjacent_channels(backend: str, x: Tensor, residual: Tensor) -> Tensor:
    return kernels.gated_residual(x.transpose(1, 2), residual, backend)


def gated_linear(backend: str, *inputs: Tensor) -> Tensor:
    return kernels.gated_linear(*inputs, backend=backend)


def feed_forward(backend: str, x: Tensor, gain: Tensor, shift: Tensor, *others: Tensor) -> Tensor:
    return kernels.feed_forward(x, "scalar", gain, shift, 1e-5, *others, backend=backend)


def diagonal_kernel(backend: str, log_a: Tensor, coefficients: Tensor) -> Tensor:
    return kernels.diagonal_kernel(log_a, coefficients, 7, backend)


def diagonal_state(backend: str, log_a: Tensor, b: Tensor, u: Tensor, state: Tensor) -> Tensor:
    return flat(kernels.diagonal_state(kernels.DiscreteDiagonal(log_a, b), u, state, backend))


def nplr_kernel(
    backend: str, dt: Tensor, a: Tensor, p: Tensor, q: Tensor, b: Tensor, c: Tensor, state: Tensor
) -> Tensor:
    """Return a kernel long enough for repeated products with a power of Ā."""
    return flat(*kernels.nplr_kernel(dt, 5 * a, p, q, b, c, 40, state, backend))


def nplr_state(backend: str, dt: Tensor, a: Tensor, p: Tensor, q: Tensor, b: Tensor, u: Tensor) -> Tensor:
    return flat(kernels.nplr_state(dt, 5 * a, p, q, b, u, backend=backend))


def chunked_convolution(
    backend: str, u: Tensor, log_a: Tensor, b: Tensor, c: Tensor, skip: Tensor, state: Tensor
) -> Tensor:
    operators = kernels.chunk_operators(kernels.DiscreteDiagonal(log_a, b), c, skip)
    return flat(*kernels.chunked_convolution(u, operators, state, backend))


def chunked_convolution_in_both_directions(
    backend: str, u: Tensor, log_a: Tensor, b: Tensor, c: Tensor, reverse: Tensor
) -> Tensor:
    operators = kernels.chunk_operators(kernels.DiscreteDiagonal(log_a, b), c, reverse=reverse)
    return flat(*kernels.chunked_convolution(u, operators, backend=backend))


def diagonal_step(backend: str, u: Tensor, state: Tensor, a: Tensor, b: Tensor, c: Tensor, skip: Tensor) -> Tensor:
    return flat(*kernels.diagonal_step(u, state, a, b, c, skip, True, backend))


def nplr_step(
    backend: str, u: Tensor, state: Tensor, a: Tensor, p: Tensor, q: Tensor, b: Tensor, c: Tensor, skip: Tensor
) -> Tensor:
    return flat(*kernels.nplr_step(u, state, kernels.DiscreteNPLR(a, p, q, b), c, skip, True, backend))


OPERATIONS: list[tuple[Function, Callable[[], tuple[Tensor, ...]]]] = [
    (scalar_norm, lambda: (real(2, 3, 2), real(1, seed=1), real(1, seed=2), real(2, 3, seed=3))),
    (layer_norm, lambda: (real(2, 3, 2), real(3, seed=1), real(3, seed=2), real(2, 3, seed=3))),
    (gated_residual, lambda: (real(2, 4, 2), real(2, 2, 2, seed=1))),
    (gated_residual_of_adjacent_channels, lambda: (real(2, 2, 4), real(2, 2, 2, seed=1))),
    (gated_linear, lambda: (real(1, 16, 2), real(32, 16, seed=1), real(32, seed=2), real(1, 16, 2, seed=3))),
    (
        feed_forward,
        lambda: (
            *(real(1, 16, 2), real(1, seed=1), real(1, seed=2)),
            *(real(16, 16, seed=3), real(16, seed=4), real(16, 16, seed=5), real(16, seed=6)),
        ),
    ),
    (diagonal_kernel, lambda: (log_a(), complex_(1, H, N))),
    (diagonal_state, lambda: (log_a(), complex_(H, N), real(1, H, 5), complex_(1, H, N, seed=1))),
    (
        nplr_kernel,
        lambda: (dt(), log_a(), *(complex_(H, N, seed=seed) for seed in range(3)), *[complex_(1, H, N, seed=4)] * 2),
    ),
    (nplr_state, lambda: (dt(), log_a(), *(complex_(H, N, seed=seed) for seed in range(3)), real(1, H, 5))),
    (
        chunked_convolution,
        lambda: (real(1, H, 5), log_a(), complex_(H, N), complex_(H, N, seed=1), real(H), complex_(1, H, N, seed=2)),
    ),
    (
        chunked_convolution_in_both_directions,
        lambda: (real(1, H, 5), log_a(), *(complex_(H, N, seed=seed) for seed in range(3))),
    ),
    (
        diagonal_step,
        lambda: (
            real(1, H),
            complex_(1, H, N),
            *(complex_(H, N, seed=i) for i in (1, 2)),
            complex_(1, H, N),
            real(1, H),
        ),
    ),
    (
        nplr_step,
        lambda: (
            *(real(1, H), complex_(1, H, N)),
            *(complex_(H, N, seed=seed) for seed in range(1, 5)),
            *(complex_(1, H, N, seed=5), real(1, H)),
        ),
    ),
]
every_operation = pytest.mark.parametrize(
    ("operation", "make_inputs"), OPERATIONS, ids=[operation.__name__ for operation, _ in OPERATIONS]
)


def distinct(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(x.detach().clone().requires_grad_() for x in inputs)


@every_operation
def test_torch_matches_finite_differences(operation: Function, make_inputs: Callable[[], tuple[Tensor, ...]]) -> None:
    inputs = distinct(make_inputs())
    assert torch.autograd.gradgradcheck(lambda *inputs: operation("torch", *inputs), inputs)


def test_scalar_norm_of_a_single_batch_element_with_bias() -> None:
    inputs = (real(1, 3, 2), real(1, seed=1), real(1, seed=2), real(1, 3, seed=3))
    assert torch.autograd.gradgradcheck(lambda *inputs: scalar_norm("torch", *inputs), inputs)


def test_inputs_without_gradients() -> None:
    """Only the signal requires a gradient."""
    x, *parameters = (real(2, 3, 2), real(1, seed=1), real(1, seed=2), real(2, 3, seed=3))
    parameters = [parameter.detach() for parameter in parameters]
    assert torch.autograd.gradgradcheck(lambda x: scalar_norm("torch", x, *parameters), (x,))


@pytest.mark.parametrize("names", [("u", "lags"), ("u",), ("lags",)])
@pytest.mark.parametrize("length", [1, 3, 8])
def test_long_convolution(names: tuple[str, ...], length: int) -> None:
    tensors = {"u": real(2, 1, 2, length), "lags": real(2, 2, kernels.fft_length(length), seed=1)}
    constants = {name: x.detach() for name, x in tensors.items()}

    def convolve(*inputs: Tensor) -> Tensor:
        return kernels.long_convolution(**{**constants, **dict(zip(names, inputs, strict=True))})

    assert torch.autograd.gradgradcheck(convolve, tuple(tensors[name] for name in names))


def test_spectrum_convolution() -> None:
    inputs = (real(2, 1, 2, 3), real(2, 2, 6, seed=1))
    assert torch.autograd.gradgradcheck(
        lambda u, lags: kernels.spectrum_convolution(u, kernels.lags_spectrum(lags)), inputs
    )


@every_operation
def test_gradient_penalties_match_the_reference(
    operation: Function, make_inputs: Callable[[], tuple[Tensor, ...]]
) -> None:
    """The gradients of |∂ sum(y²) / ∂ inputs|² of both backends are compared."""
    penalties = []
    for backend in ("torch", "reference"):
        inputs = distinct(make_inputs())
        y = operation(backend, *inputs)
        gradients = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        penalty = sum(gradient.abs().square().sum() for gradient in gradients)
        penalties.append(torch.autograd.grad(penalty, inputs, allow_unused=True))
    for actual, expected in zip(*penalties, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-8)


@every_operation
def test_triton_refuses_second_derivatives(operation: Function, make_inputs: Callable[[], tuple[Tensor, ...]]) -> None:
    pytest.importorskip("triton", reason="the triton package is not installed")
    single = {torch.float64: torch.float32, torch.complex128: torch.complex64}
    inputs = tuple(x.detach().to(single[x.dtype]).requires_grad_() for x in make_inputs())
    y = operation("triton", *inputs)
    gradients = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
    penalty = sum(gradient.abs().square().sum() for gradient in gradients)
    if operation is nplr_state:  # its backward pass is that of the torch backend
        expected = second_derivatives(operation, make_inputs())
        for actual, wanted in zip(torch.autograd.grad(penalty, inputs), expected, strict=True):
            torch.testing.assert_close(actual.to(wanted), wanted, rtol=1e-3, atol=1e-3)
        return
    name = operation.__name__.split("_of_")[0].split("_in_")[0]
    with pytest.raises(RuntimeError, match=f"{name}.* has no second derivative: use backend='torch'"):
        torch.autograd.grad(penalty, inputs)


def second_derivatives(operation: Function, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    y = operation("reference", *inputs)
    gradients = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
    return torch.autograd.grad(sum(gradient.abs().square().sum() for gradient in gradients), inputs)


def test_compiled_long_convolution_has_the_same_gradients() -> None:
    u, lags = real(2, 1, 2, 5), real(1, 2, 10, seed=1)
    torch.compiler.reset()
    compiled = torch.compile(kernels.long_convolution, fullgraph=True, backend="aot_eager")
    found = (torch.autograd.grad(f(u, lags).square().sum(), (u, lags)) for f in (compiled, kernels.long_convolution))
    for actual, expected in zip(*found, strict=True):
        torch.testing.assert_close(actual, expected)
