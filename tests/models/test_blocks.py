"""Tests of ScalarNorm: features of small magnitude, equal channels, every backend."""

import pytest
import torch
from torch import Tensor

from sashimi_diffusion.models.blocks import ScalarNorm

BACKENDS = ("torch", "reference", "triton")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Select each kernel backend in turn (Triton in its interpreter)."""
    if request.param == "triton":
        pytest.importorskip("triton", reason="the triton package is not installed")
    monkeypatch.setenv("SASHIMI_KERNELS", request.param)
    return request.param


def scalar_norm() -> ScalarNorm:
    norm = ScalarNorm()
    torch.nn.init.constant_(norm.gain, 1.5)
    torch.nn.init.constant_(norm.shift, 0.3)
    return norm


def official(x: Tensor, norm: ScalarNorm) -> Tensor:
    """Return the norm of the official code, without epsilon, in float64."""
    x, gain, shift = x.double(), norm.gain.double(), norm.shift.double()
    return gain / x.std(1, correction=0, keepdim=True) * (x - x.mean(1, keepdim=True) + shift)


@torch.no_grad()
@pytest.mark.parametrize("deviation", [1.0, 1e-2, 1e-4, 1e-6])
def test_the_scalar_norm_of_small_features_matches_the_official_one(backend: str, deviation: float) -> None:
    x = deviation * torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    norm = scalar_norm()
    expected = official(x, norm)
    assert (norm(x) - expected).abs().max() < 1e-5 * expected.abs().max()
    if backend != "triton":  # Triton has no float64
        expected = official(x.double(), norm)
        assert (norm.double()(x.double()) - expected).abs().max() < 1e-7 * expected.abs().max()


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [0.0, 0.1, 100.0])
def test_equal_channels_stay_finite(backend: str, value: float, dtype: torch.dtype, autocast: bool) -> None:
    x = torch.full((2, 70, 3), value, dtype=dtype).requires_grad_()
    norm = scalar_norm()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = norm(x, torch.ones(2, 70))
    y.sum().backward()
    for tensor in (y, x.grad, norm.gain.grad, norm.shift.grad):
        if dtype != torch.float16 or tensor is y:  # float16 gradients may overflow: loss scalers skip such steps
            assert torch.isfinite(tensor).all()
