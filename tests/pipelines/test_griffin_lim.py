"""Tests of Griffin-Lim: the spectrogram of the result, its position in time, and long spectrograms in blocks."""

import math

import pytest
import torch
from torch import Tensor

from sashimi_diffusion.data.mel import LogMel
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.pipelines import griffin_lim as module
from sashimi_diffusion.pipelines.griffin_lim import griffin_lim

RATE = 8000


def transform(**settings: object) -> LogMel:
    return LogMel(RATE, **{"n_fft": 256, "hop": 64, "n_mels": 40, "f_max": 4000.0, **settings})


def tones(length: int) -> Tensor:
    """Return two waveforms (2, 1, L) of three tones each, above noise."""
    t = torch.arange(length) / RATE
    noise = torch.randn(2, length, generator=torch.Generator().manual_seed(0))
    pitches = torch.tensor([[310.0, 900.0, 1700.0], [450.0, 1200.0, 2600.0]])
    return (0.1 * torch.sin(2 * math.pi * pitches[..., None] * t).sum(dim=1) + 0.003 * noise)[:, None]


@pytest.mark.parametrize(
    "settings",
    [{}, {"padding": "hop"}, {"power": 2, "log": "db"}, {"log": "log10", "mel_scale": "htk"}, {"win_length": 200}],
)
def test_the_result_has_the_spectrogram(settings: dict[str, object]) -> None:
    mel = transform(**settings)
    waveforms = tones(64 * 64)
    given = mel(waveforms)
    found = griffin_lim(mel, given)
    assert found.dtype == torch.float32
    assert found.shape == (2, 1, 64 * given.shape[-1])
    inner = given[..., 6:-6]
    loud = inner > inner.amax() - 3 * mel.settings.unit * mel.settings.power

    def error(waveform: Tensor) -> float:
        return float((mel(waveform[..., : 64 * 64])[..., 6:-6] - inner)[loud].abs().mean())

    noise = torch.randn(waveforms.shape, generator=torch.Generator().manual_seed(1)) * waveforms.std()
    assert error(found) < 0.35 * error(noise)


@pytest.mark.parametrize("padding", ["center", "hop"])
@pytest.mark.parametrize("n_fft", [256, 255])
def test_a_burst_stays_where_it_is(padding: str, n_fft: int) -> None:
    mel = transform(padding=padding, n_fft=n_fft)
    waveform = torch.zeros(1, 1, 4096)
    waveform[..., 2000:2200] = 0.5 * torch.randn(200, generator=torch.Generator().manual_seed(0))
    found = griffin_lim(mel, mel(waveform))[0, 0]
    power = found.square()
    center = float((power * torch.arange(len(power))).sum() / power.sum())
    assert abs(center - 2100) < 16


@pytest.mark.parametrize("padding", ["center", "hop"])
@pytest.mark.parametrize("frames", [1, 2, 5])
def test_a_few_frames(padding: str, frames: int) -> None:
    found = griffin_lim(transform(padding=padding), torch.zeros(1, 40, frames))
    assert found.shape == (1, 1, 64 * frames)
    assert torch.isfinite(found).all()
    assert found.abs().max() > 0


def test_long_spectrograms_are_processed_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    mel = transform()
    given = mel(tones(64 * 400))
    whole = griffin_lim(mel, given)
    monkeypatch.setattr(module, "BLOCK_FRAMES", 100)
    parts = griffin_lim(mel, given)
    assert parts.shape == whole.shape
    errors = [float((mel(found)[..., : given.shape[-1]] - given).abs().mean()) for found in (whole, parts)]
    assert errors[1] < 1.2 * errors[0]


def test_a_batch_gives_what_its_rows_give() -> None:
    mel = transform()
    given = mel(tones(2048))
    alone = torch.cat([griffin_lim(mel, row[None]) for row in given])
    torch.testing.assert_close(griffin_lim(mel, given), alone, rtol=1e-3, atol=1e-4)


def test_windows_that_do_not_overlap_by_half_are_refused() -> None:
    mel = transform(hop=200, win_length=200)
    with pytest.raises(UserError, match=r"at least two hops \(400 samples\), got 200"):
        griffin_lim(mel, torch.zeros(1, 40, 9))
