"""Tests of the gain of a denoiser over a Wiener filter."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sashimi_diffusion.benchmarks.denoising_gain import denoising_gains, wiener_gains
from sashimi_diffusion.schedulers import DiffWaveScheduler
from sashimi_diffusion.training.diffusion.batches import Batch

RATE, LENGTH = 8000, 4096


class Partly(nn.Module):
    """A denoiser that knows the noise below 2 kHz exactly, and predicts none above."""

    config = SimpleNamespace(sample_rate=RATE)

    def __init__(self, noise: Tensor) -> None:
        super().__init__()
        spectrum = torch.fft.rfft(noise)
        spectrum[..., LENGTH * 2000 // RATE :] = 0
        self.low = torch.fft.irfft(spectrum)

    def forward(self, noisy: Tensor, timesteps: Tensor, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(sample=self.low)


def example() -> Batch:
    """Return waveforms of noise that is weaker the higher its frequency, and white noise to add."""
    random = torch.Generator().manual_seed(0)
    spectrum = torch.fft.rfft(torch.randn(4, 1, LENGTH, generator=random))
    waveform = torch.fft.irfft(spectrum / (1 + torch.arange(LENGTH // 2 + 1) / 100))
    return Batch(waveform, torch.randn(4, 1, LENGTH, generator=random), torch.zeros(4, dtype=torch.long), None, None)


def test_the_gain_is_that_of_each_band() -> None:
    batch = example()
    pipe = SimpleNamespace(model=Partly(batch.noise), scheduler=DiffWaveScheduler(200))
    gains = denoising_gains(pipe, batch, 60)
    assert len(gains) == 4
    assert min(gains[:2]) > 10  # no noise is left
    assert max(gains[2:]) < 0  # all noise is left, more than the filter leaves


def test_the_filter_knows_the_smooth_spectrum() -> None:
    flat = torch.full((1, 129, 20), 3.0 + 0j)
    torch.testing.assert_close(wiener_gains(flat, 3.0, RATE), torch.full((1, 129, 20), 0.75))
    lines = torch.zeros(1, 129, 20, dtype=torch.complex64)
    lines[:, ::2] = 2.0  # harmonics: the filter does not resolve them
    gains = wiener_gains(lines, 2.0, RATE)[:, 20:100]
    assert (gains.max() - gains.min()).item() == pytest.approx(0, abs=0.05)
