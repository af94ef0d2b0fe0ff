"""Every operation against its definition, in float64, over awkward sizes; and its gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sashimi_kernels as kernels
from sashimi_kernels import reference, torch_backend

SIZES = [(1, 1, 1, 1), (1, 2, 1, 2), (2, 3, 5, 37), (1, 4, 8, 64), (3, 2, 4, 101), (1, 2, 32, 1000)]


def complex_randn(*shape: int, generator: torch.Generator) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex128, generator=generator)


def stable_system(n_features: int, n: int, seed: int = 0) -> dict[str, Tensor]:
    """dt, a, p, q, b of a random A = diag(a) - p p*, whose diagonal decays."""
    generator = torch.Generator().manual_seed(seed)
    real = -torch.rand(n_features, n, dtype=torch.float64, generator=generator) - 0.1
    imag = 10 * torch.randn(n_features, n, dtype=torch.float64, generator=generator)
    p = complex_randn(n_features, n, generator=generator)
    return {
        "dt": 10 ** (-1 - 2 * torch.rand(n_features, 1, dtype=torch.float64, generator=generator)),
        "a": torch.complex(real, imag),
        "p": p,
        "q": p.conj().resolve_conj(),
        "b": complex_randn(n_features, n, generator=generator),
    }


def outputs(m: int, n_features: int, n: int) -> Tensor:
    return complex_randn(m, n_features, n, generator=torch.Generator().manual_seed(1))


def assert_close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    assert actual.shape == expected.shape
    assert torch.isfinite(actual).all()
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize(("m", "h", "n", "length"), SIZES)
@pytest.mark.parametrize("method", ["zoh", "bilinear"])
def test_diagonal_kernel_is_the_vandermonde_product(m: int, h: int, n: int, length: int, method: str) -> None:
    system = stable_system(h, n)
    discrete = kernels.discretize_diagonal(system["dt"], system["a"], system["b"], method)
    coefficients = outputs(m, h, n) * discrete.b
    expected = kernels.diagonal_kernel(discrete.log_a, coefficients, length, backend="reference")
    assert_close(kernels.diagonal_kernel(discrete.log_a, coefficients, length, backend="torch"), expected, 1e-12)
    in_float32 = kernels.diagonal_kernel(discrete.log_a, coefficients.to(torch.complex64), length, backend="torch")
    assert in_float32.dtype == torch.float32
    assert_close(in_float32.double(), expected, 1e-5)


@pytest.mark.parametrize(("m", "h", "n", "length"), SIZES)
def test_nplr_kernel_is_the_impulse_response(m: int, h: int, n: int, length: int) -> None:
    """Both algorithms, Krylov and Cauchy, against the recurrence itself."""
    system, c = stable_system(h, n), outputs(m, h, n)
    state, samples = torch.zeros(1, h, n, dtype=torch.complex128), []
    for step in range(length):
        impulse = torch.full((1, h, 1), 1.0 if step == 0 else 0.0, dtype=torch.float64)
        state = reference.nplr_state(**system, u=impulse, state=state)
        samples.append(2 * (c * state).real.sum(-1))
    expected = torch.stack(samples, dim=-1)
    for backend in kernels.available_backends():
        kernel, response = kernels.nplr_kernel(**system, c=c, length=length, backend=backend)
        assert response is None
        assert_close(kernel, expected, 1e-8)
        in_float32, _ = kernels.nplr_kernel(**system, c=c.to(torch.complex64), length=length, backend=backend)
        assert in_float32.dtype == torch.float32
        assert_close(in_float32.double(), expected, 1e-5)


@pytest.mark.parametrize(("batch", "h", "n", "length"), SIZES)
def test_states_and_responses_continue_the_recurrence(batch: int, h: int, n: int, length: int) -> None:
    generator = torch.Generator().manual_seed(2)
    system, c = stable_system(h, n), outputs(2, h, n)
    u = torch.randn(batch, h, length, dtype=torch.float64, generator=generator)
    start = complex_randn(batch, h, n, generator=generator)
    diagonal = kernels.discretize_diagonal(system["dt"], system["a"], system["b"], "zoh")
    for state in (None, start):
        expected = kernels.nplr_state(**system, u=u, state=state, backend="reference")
        assert_close(kernels.nplr_state(**system, u=u, state=state, backend="torch"), expected, 1e-10)
        expected = kernels.diagonal_state(diagonal, u, state, backend="reference")
        assert_close(kernels.diagonal_state(diagonal, u, state, backend="torch"), expected, 1e-10)
    _, expected = kernels.nplr_kernel(**system, c=c, length=length, state=start, backend="reference")
    _, response = kernels.nplr_kernel(**system, c=c, length=length, state=start, backend="torch")
    assert_close(response, expected, 1e-10)


def test_diagonal_gradients() -> None:
    system = stable_system(2, 3)
    log_a = (system["dt"] * system["a"]).requires_grad_()
    coefficients = outputs(2, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda a, c: torch_backend.diagonal_kernel(a, c, 19), (log_a, coefficients))


def test_nplr_gradients() -> None:
    system = {name: value.requires_grad_() for name, value in stable_system(2, 2).items()}
    c = outputs(1, 2, 2).requires_grad_()

    def kernel(dt: Tensor, a: Tensor, p: Tensor, q: Tensor, b: Tensor, c: Tensor) -> Tensor:
        return torch_backend.nplr_kernel(dt, a, p, q, b, c, 11)[0]

    assert torch.autograd.gradcheck(kernel, (*system.values(), c))


@settings(max_examples=30)
@given(length=st.integers(1, 70), shift=st.sampled_from([0, 1]), seed=st.integers(0, 2**16))
def test_convolution_is_the_double_sum(length: int, shift: int, seed: int) -> None:
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
    spectrum = kernels.kernel_spectrum(forward, skip, reverse, shift)
    assert_close(kernels.fft_convolve(u, spectrum), expected, 1e-12)


@given(length=st.integers(1, 200_000))
def test_fft_length_is_smooth_and_sufficient(length: int) -> None:
    size = kernels.fft_length(length)
    assert size >= 2 * length
    for prime in (2, 3, 5):
        while size % prime == 0:
            size //= prime
    assert size == 1


def test_backend_is_chosen_by_argument_then_environment(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_a_backend_that_cannot_run_is_an_error(monkeypatch: pytest.MonkeyPatch, through_environment: bool) -> None:
    log_a = stable_system(1, 1)["a"]
    if through_environment:
        monkeypatch.setenv("SASHIMI_KERNELS", "cuda")
    with pytest.raises(kernels.BackendUnavailableError, match=r"'cuda' cannot run.*torch"):
        kernels.diagonal_kernel(log_a, log_a, 4, backend="auto" if through_environment else "cuda")
