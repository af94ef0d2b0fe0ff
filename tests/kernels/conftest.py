"""Fixtures for the kernel tests: random systems, error bounds, NaN in memory that is not written."""

import importlib.util
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor


@pytest.fixture(autouse=True)
def _launches_are_listed() -> Iterator[None]:
    """Assert that every started kernel is listed, because ahead-of-time checks cover only listed forms."""
    if importlib.util.find_spec("triton") is None:
        yield
        return
    from sashimi_kernels.aot import every_launch
    from sashimi_kernels.triton_backend.launch import recording

    with recording() as started:
        yield
    started_forms = {launch.form() for launch in started if launch.kernel.__module__.startswith("sashimi_kernels")}
    assert started_forms <= {launch.form() for launch in every_launch()}


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill ``torch.empty``, ``torch.empty_like`` and ``Tensor.new_empty`` with NaN to find unwritten elements."""

    def poison(make):
        def allocate(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(float("nan")) if tensor.is_floating_point() or tensor.is_complex() else tensor

        return allocate

    monkeypatch.setattr(torch, "empty", poison(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poison(torch.empty_like))
    monkeypatch.setattr(torch.Tensor, "new_empty", poison(torch.Tensor.new_empty))


@pytest.fixture(scope="session")
def assert_close() -> Callable[[str, Tensor, Tensor, float, float], None]:
    """Return ``assert_close(name, actual, expected, rms, maximum)``, which checks shape, finiteness and two errors.

    ``rms`` bounds the ratio of the root mean squares of error and expected values, ``maximum`` that of their maxima.
    """

    def check(name: str, actual: Tensor, expected: Tensor, rms: float, maximum: float) -> None:
        assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, not {tuple(expected.shape)}"
        if expected.numel() == 0:
            return
        actual, expected = (_as_double(x.detach()) for x in (actual, expected))
        assert torch.isfinite(actual).all(), f"{name} is not finite"
        error = (actual - expected).abs()
        for measure, bound, how in ((_rms, rms, "RMS"), (torch.max, maximum, "maximum")):
            allowed, got = bound * measure(expected.abs()).item(), measure(error).item()
            assert got <= allowed, f"{name}: {how} of the error {got:.2e}, allowed {allowed:.2e}"

    return check


@pytest.fixture(scope="session")
def stable_system() -> Callable[..., dict[str, Tensor]]:
    """Return ``stable_system(n_features, n, seed=0)``: dt, a, p, q, b of a random A = diag(a) - p p*, Re(a) < 0."""

    def make(n_features: int, n: int, seed: int = 0) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        real = -torch.rand(n_features, n, dtype=torch.float64, generator=generator) - 0.1
        imag = 10 * torch.randn(n_features, n, dtype=torch.float64, generator=generator)
        p, b = torch.randn(2, n_features, n, dtype=torch.complex128, generator=generator)
        return {
            "dt": 10 ** (-1 - 2 * torch.rand(n_features, 1, dtype=torch.float64, generator=generator)),
            "a": torch.complex(real, imag),
            "p": p,
            "q": p.conj().resolve_conj(),
            "b": b,
        }

    return make


def _as_double(x: Tensor) -> Tensor:
    return torch.view_as_real(x).double() if x.is_complex() else x.double()


def _rms(x: Tensor) -> Tensor:
    return x.square().mean().sqrt()
