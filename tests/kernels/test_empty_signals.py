"""Tests of empty inputs: a batch of 0 gives empty results and zero gradients; a length of 0 is an error."""

from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

import sashimi_kernels as kernels

BACKENDS = ["reference", "torch", *(["triton"] if find_spec("triton") else [])]
H, N, M = 3, 2, 2


def real(*shape: int) -> Tensor:
    return torch.full(shape, 0.5, requires_grad=True)


def complex_(*shape: int) -> Tensor:
    return torch.full(shape, -0.3 + 0.4j, dtype=torch.complex64, requires_grad=True)


# For each name: a function of a backend and tensors, and a function that makes the tensors of a batch and length.
OPERATIONS: dict[str, tuple[Callable, Callable[[int, int], list[Tensor]]]] = {
    "scalar_norm": (
        lambda backend, *inputs: kernels.scalar_norm(*inputs, backend=backend),
        lambda batch, length: [real(batch, H, length), real(1), real(1), real(batch, H)],
    ),
    "layer_norm": (
        lambda backend, *inputs: kernels.layer_norm(*inputs, backend=backend),
        lambda batch, length: [real(batch, H, length), real(H), real(H), real(batch, H)],
    ),
    "gated_residual": (
        lambda backend, *inputs: kernels.gated_residual(*inputs, backend=backend),
        lambda batch, length: [real(batch, 2 * H, length), real(batch, H, length)],
    ),
    "gated_linear": (
        lambda backend, *inputs: kernels.gated_linear(*inputs, backend=backend),
        lambda batch, length: [real(batch, 16, length), real(32, 16), real(32), real(batch, 16, length)],
    ),
    "feed_forward": (
        lambda backend, x, gain, shift, *others: kernels.feed_forward(
            x, "scalar", gain, shift, 1e-5, *others, backend=backend
        ),
        lambda batch, length: [
            *(real(batch, 16, length), real(1), real(1)),
            *(real(32, 16), real(32), real(16, 32), real(16), real(batch, 16, length)),
        ],
    ),
    "long_convolution": (
        lambda backend, u, kernel: kernels.long_convolution(u, kernels.kernel_lags(kernel)),
        lambda batch, length: [real(batch, 1, H, length), real(M, H, max(1, length))],
    ),
    "spectrum_convolution": (
        lambda backend, u: kernels.spectrum_convolution(u, torch.ones(M, H, u.shape[-1] + 1, dtype=torch.complex64)),
        lambda batch, length: [real(batch, 1, H, length)],
    ),
    "chunked_convolution": (
        lambda backend, u, log_a, b, c, state: kernels.chunked_convolution(
            u, kernels.chunk_operators(kernels.DiscreteDiagonal(log_a, b), c), state, backend
        ),
        lambda batch, length: [
            real(batch, H, length),
            *(complex_(H, N) for _ in range(3)),
            complex_(batch, H, N),
        ],
    ),
    "diagonal_state": (
        lambda backend, u, log_a, b, state: kernels.diagonal_state(
            kernels.DiscreteDiagonal(log_a, b), u, state, backend
        ),
        lambda batch, length: [real(batch, H, length), complex_(H, N), complex_(H, N), complex_(batch, H, N)],
    ),
    "nplr_state": (
        lambda backend, u, dt, a, p, q, b, state: kernels.nplr_state(dt, a, p, q, b, u, state, backend),
        lambda batch, length: [
            real(batch, H, length),
            real(H, 1),
            *(complex_(H, N) for _ in range(4)),
            complex_(batch, H, N),
        ],
    ),
    "diagonal_step": (
        lambda backend, u, state, a, b, c, skip: kernels.diagonal_step(u, state, a, b, c, skip, True, backend),
        lambda batch, _: [
            *(real(batch, H), complex_(batch, H, N)),
            *(complex_(H, N), complex_(H, N), complex_(M, H, N), real(M, H)),
        ],
    ),
}


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_empty_batch(name: str, backend: str) -> None:
    operation, make_inputs = OPERATIONS[name]
    found, expected = (operation(backend, *make_inputs(batch, 6)) for batch in (0, 2))
    found, expected = (x if isinstance(x, tuple) else (x,) for x in (found, expected))
    for empty, full in zip(found, expected, strict=True):
        assert empty.shape == (0, *full.shape[1:])
        assert empty.dtype == full.dtype
    if name == "spectrum_convolution":  # it has no gradient
        return
    inputs = make_inputs(0, 6)
    results = operation(backend, *inputs)
    results = results if isinstance(results, tuple) else (results,)
    gradients = torch.autograd.grad([x.abs().sum() for x in results], inputs)
    for x, gradient in zip(inputs, gradients, strict=True):
        assert gradient.shape == x.shape
        assert (gradient == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "diagonal_step"])
def test_a_length_of_zero_is_an_error(name: str, backend: str) -> None:
    operation, make_inputs = OPERATIONS[name]
    with pytest.raises(ValueError, match=r"expected a length of at least one sample, got 0"):
        operation(backend, *make_inputs(2, 0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_kernel_of_length_zero_is_an_error(backend: str) -> None:
    vector, c = complex_(H, N), complex_(M, H, N)
    with pytest.raises(ValueError, match="at least one sample, got 0"):
        kernels.diagonal_kernel(vector, c, 0, backend)
    with pytest.raises(ValueError, match="at least one sample, got 0"):
        kernels.nplr_kernel(real(H, 1), vector, vector, vector, vector, c, 0, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_responses_to_an_empty_batch_of_states(backend: str) -> None:
    vector, c = complex_(H, N), complex_(M, H, N)
    kernel, response = kernels.nplr_kernel(
        real(H, 1), vector, vector, vector, vector, c, 5, complex_(0, H, N), backend=backend
    )
    assert kernel.shape == (M, H, 5)
    assert response.shape == (0, M, H, 5)


def test_lags_of_length_zero_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least one sample, got 0"):
        kernels.kernel_lags(real(M, H, 0))
    with pytest.raises(ValueError, match="at least one sample, got 0"):
        kernels.fft_length(0)
