"""Tests of every operation in float64 against its definition, and of its gradients, for many sizes."""

from collections.abc import Callable
from importlib.util import find_spec

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sashimi_kernels as kernels
from sashimi_kernels import reference, torch_backend

IN_FLOAT32 = ["reference", "torch", *(["triton"] if find_spec("triton") else [])]
SIZES = [(1, 1, 1, 1), (1, 2, 1, 2), (2, 3, 5, 37), (1, 4, 8, 64), (3, 2, 4, 101), (1, 2, 32, 1000)]


def complex_randn(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex128, generator=generator)


def outputs(m: int, n_features: int, n: int) -> Tensor:
    return complex_randn(m, n_features, n, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("m", "h", "n", "length"), SIZES)
@pytest.mark.parametrize("method", ["zoh", "bilinear"])
def test_diagonal_kernel_matches_the_vandermonde_product(
    assert_close: Callable, stable_system: Callable, m: int, h: int, n: int, length: int, method: str
) -> None:
    system = stable_system(h, n)
    discrete = kernels.discretize_diagonal(system["dt"], system["a"], system["b"], method)
    coefficients = outputs(m, h, n) * discrete.b
    expected = kernels.diagonal_kernel(discrete.log_a, coefficients, length, backend="reference")
    kernel = kernels.diagonal_kernel(discrete.log_a, coefficients, length, backend="torch")
    assert_close("torch", kernel, expected, 1e-12, 1e-12)
    for backend in IN_FLOAT32:
        kernel = kernels.diagonal_kernel(discrete.log_a, coefficients.to(torch.complex64), length, backend=backend)
        assert kernel.dtype == torch.float32
        assert_close(backend, kernel, expected, 1e-5, 1e-5)


@pytest.mark.parametrize(("m", "h", "n", "length"), SIZES)
def test_nplr_kernel_matches_the_impulse_response(
    assert_close: Callable, stable_system: Callable, m: int, h: int, n: int, length: int
) -> None:
    """Both algorithms, Krylov and Cauchy, are compared with the recurrence."""
    system, c = stable_system(h, n), outputs(m, h, n)
    state, samples = torch.zeros(1, h, n, dtype=torch.complex128), []
    for step in range(length):
        impulse = torch.full((1, h, 1), 1.0 if step == 0 else 0.0, dtype=torch.float64)
        state = reference.nplr_state(**system, u=impulse, state=state)
        samples.append(2 * (c * state).real.sum(-1))
    expected = torch.stack(samples, dim=-1)
    for backend in ("reference", "torch"):
        kernel, response = kernels.nplr_kernel(**system, c=c, length=length, backend=backend)
        assert response is None
        assert_close(backend, kernel, expected, 1e-8, 1e-8)
    for backend in IN_FLOAT32:
        kernel, _ = kernels.nplr_kernel(**system, c=c.to(torch.complex64), length=length, backend=backend)
        assert kernel.dtype == torch.float32
        assert_close(f"{backend} in float32", kernel, expected, 1e-5, 1e-5)


@pytest.mark.parametrize(("batch", "h", "n", "length"), SIZES)
def test_states_and_responses_continue_the_recurrence(
    assert_close: Callable, stable_system: Callable, batch: int, h: int, n: int, length: int
) -> None:
    generator = torch.Generator().manual_seed(2)
    system, c = stable_system(h, n), outputs(2, h, n)
    u = torch.randn(batch, h, length, dtype=torch.float64, generator=generator)
    start = complex_randn(batch, h, n, generator=generator)
    diagonal = kernels.discretize_diagonal(system["dt"], system["a"], system["b"], "zoh")
    for state in (None, start):
        expected = kernels.nplr_state(**system, u=u, state=state, backend="reference")
        actual = kernels.nplr_state(**system, u=u, state=state, backend="torch")
        assert_close("nplr_state", actual, expected, 1e-10, 1e-10)
        expected = kernels.diagonal_state(diagonal, u, state, backend="reference")
        actual = kernels.diagonal_state(diagonal, u, state, backend="torch")
        assert_close("diagonal_state", actual, expected, 1e-10, 1e-10)
    _, expected = kernels.nplr_kernel(**system, c=c, length=length, state=start, backend="reference")
    _, response = kernels.nplr_kernel(**system, c=c, length=length, state=start, backend="torch")
    assert_close("response", response, expected, 1e-10, 1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_states_of_half_precision_inputs_are_float32(
    assert_close: Callable, stable_system: Callable, dtype: torch.dtype
) -> None:
    system = stable_system(2, 3)
    diagonal = kernels.discretize_diagonal(system["dt"], system["a"], system["b"], "zoh")
    u = torch.linspace(-1, 1, 2 * 2 * 40).view(2, 2, 40).to(dtype)
    for name, arguments in (("nplr_state", system.values()), ("diagonal_state", [diagonal])):
        state_after = getattr(kernels, name)
        actual = state_after(*arguments, u, backend="torch")
        assert actual.dtype == torch.complex64
        assert_close(name, actual, state_after(*arguments, u.double(), backend="reference"), 1e-6, 1e-6)


def test_diagonal_gradients(stable_system: Callable) -> None:
    system = stable_system(2, 3)
    log_a = (system["dt"] * system["a"]).requires_grad_()
    coefficients = outputs(2, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, c: torch_backend.diagonal_kernel(a, c, 19), (log_a, coefficients))


def test_nplr_gradients(stable_system: Callable) -> None:
    system = {name: value.requires_grad_() for name, value in stable_system(2, 2).items()}
    c = outputs(1, 2, 2).requires_grad_()

    def kernel(dt: Tensor, a: Tensor, p: Tensor, q: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return torch_backend.nplr_kernel(dt, a, p, q, b, c, 11)[0]

    assert torch.autograd.gradcheck(kernel, (*system.values(), c))


@settings(max_examples=30)
@given(length=st.integers(1, 70), shift=st.sampled_from([0, 1]), seed=st.integers(0, 2**16))
def test_convolution_matches_the_double_sum(assert_close: Callable, length: int, shift: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    u, forward, reverse = torch.randn(3, 2, length, dtype=torch.float64, generator=generator)
    skip = torch.randn(2, dtype=torch.float64, generator=generator)
    expected = skip.unsqueeze(-1) * u
    for t in range(length):
        for j in range(length):
            if t - j >= 0:
                expected[:, t] += forward[:, j] * u[:, t - j]
            if t + shift + j < length:
                expected[:, t] += reverse[:, j] * u[:, t + shift + j]
    lags = kernels.kernel_lags(forward, skip, reverse, shift).unsqueeze(0)
    signal = u[None, None]  # (batch, 1, H, L)
    for convolve, how in (
        (kernels.long_convolution, lags),
        (kernels.spectrum_convolution, kernels.lags_spectrum(lags)),
    ):
        assert_close(convolve.__name__, convolve(signal, how)[0, 0], expected, 1e-12, 1e-12)


@pytest.mark.parametrize("length", [1, 2048, 2049, 5000])
def test_convolution_of_adjacent_channels(length: int) -> None:
    """Signals with adjacent channels are made contiguous in pieces, of 2,048 samples for 64 channels."""
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(2, length, 64, generator=generator)
    u = rows.transpose(1, 2).unsqueeze(1)  # (batch, 1, H, L)
    lags = kernels.kernel_lags(torch.randn(3, 64, length, generator=generator))
    spectrum = kernels.lags_spectrum(lags)
    expected = kernels.long_convolution(u.contiguous(), lags)
    torch.testing.assert_close(kernels.long_convolution(u, lags), expected)
    torch.testing.assert_close(kernels.spectrum_convolution(u, spectrum), expected)


@pytest.mark.parametrize(("batch", "channels", "h", "length"), [(1, 1, 1, 1), (2, 1, 3, 13), (3, 2, 2, 16)])
def test_convolution_gradients(batch: int, channels: int, h: int, length: int) -> None:
    generator = torch.Generator().manual_seed(3)
    u = torch.randn(batch, 1, h, length, dtype=torch.float64, generator=generator, requires_grad=True)
    kernel = torch.randn(2, channels, h, length, dtype=torch.float64, generator=generator, requires_grad=True)

    def convolve(u: Tensor, kernel: Tensor) -> Tensor:
        return kernels.long_convolution(u, kernels.kernel_lags(kernel[0], None, kernel[1]))

    assert torch.autograd.gradcheck(convolve, (u, kernel))


@given(length=st.integers(1, 200_000))
def test_fft_length_is_smooth_and_sufficient(length: int) -> None:
    size = kernels.fft_length(length)
    assert size >= 2 * length
    for prime in (2, 3, 5):
        while size % prime == 0:
            size //= prime
    assert size == 1


def test_backend_is_chosen_by_argument_then_environment(
    monkeypatch: pytest.MonkeyPatch, stable_system: Callable
) -> None:
    system, calls = stable_system(1, 1), []
    monkeypatch.setattr(reference, "diagonal_kernel", lambda *_: calls.append("reference"))
    monkeypatch.setattr(torch_backend, "diagonal_kernel", lambda *_: calls.append("torch"))
    log_a = system["dt"] * system["a"]
    kernels.diagonal_kernel(log_a, log_a, 4)
    monkeypatch.setenv("SASHIMI_KERNELS", "reference")
    kernels.diagonal_kernel(log_a, log_a, 4)
    kernels.diagonal_kernel(log_a, log_a, 4, backend="torch")
    assert calls == ["torch", "reference", "torch"]


@pytest.mark.parametrize("through_environment", [False, True])
def test_a_backend_that_cannot_run_is_an_error(
    monkeypatch: pytest.MonkeyPatch, stable_system: Callable, through_environment: bool
) -> None:
    log_a = stable_system(1, 1)["a"]
    if through_environment:
        monkeypatch.setenv("SASHIMI_KERNELS", "cuda")
    with pytest.raises(kernels.BackendUnavailableError, match=r"'cuda' cannot run.*torch"):
        kernels.diagonal_kernel(log_a, log_a, 4, backend="auto" if through_environment else "cuda")
