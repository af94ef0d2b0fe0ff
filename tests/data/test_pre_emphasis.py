"""Tests of pre-emphasis and its inverse."""

import numpy as np
import pytest
import torch

from sashimi_diffusion.data.pre_emphasis import de_emphasize, pre_emphasize


def waveform(length: int) -> torch.Tensor:
    return torch.randn(2, 1, length, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("coefficient", [0.0, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("length", [1, 2, 7, 5120])
def test_the_inverse_restores_the_waveform(coefficient: float, length: int) -> None:
    x = waveform(length)
    torch.testing.assert_close(de_emphasize(pre_emphasize(x, coefficient), coefficient), x)


def test_de_emphasis_is_the_recursion() -> None:
    y = waveform(300)
    expected = np.zeros((2, 1))
    for n in range(300):
        expected = y[..., n].numpy() + 0.93 * expected
        np.testing.assert_allclose(de_emphasize(y, 0.93)[..., n].numpy(), expected, atol=1e-12)


def test_gain_at_the_lowest_and_the_highest_frequency() -> None:
    constant, alternating = torch.ones(1, 400), torch.ones(1, 400)
    alternating[:, 1::2] = -1
    assert pre_emphasize(constant, 0.9)[0, 200].item() == pytest.approx(0.1)
    assert pre_emphasize(alternating, 0.9)[0, 200].item() == pytest.approx(1.9)


def test_float32_loses_no_precision() -> None:
    x = waveform(16000)
    restored = de_emphasize(pre_emphasize(x.float(), 0.95), 0.95)
    assert (restored.double() - x).abs().max() < 2e-5
