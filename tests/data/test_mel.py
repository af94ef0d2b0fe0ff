"""Tests of the log-mel spectrogram against that of the official vocoder code."""

import math
from dataclasses import asdict

import numpy as np
import pytest
import torch

from sashimi_diffusion.data import mel as mel_module
from sashimi_diffusion.data.mel import LogMel, MelSettings
from sashimi_diffusion.errors import UserError


@pytest.fixture(scope="module")
def official(golden) -> dict[str, torch.Tensor]:
    return golden.tensors("g_audio/quantise_mel_features")


@pytest.mark.usefixtures("needs_torchaudio")
@pytest.mark.parametrize(
    ("hop", "part", "name"),
    [
        (256, slice(None), "out.mel_ljspeech"),
        (256, slice(2000, 18000), "out.mel_segment_2000_18000"),
        (2048, slice(None), "out.mel_harder"),
    ],
)
def test_log_mel_agrees_with_the_official_one(official: dict[str, torch.Tensor], hop: int, part: slice, name: str):
    waveform = (official["in.mel_pcm_int16"].float() / 2**15)[part]
    mel = LogMel(hop=hop)(waveform[None])
    assert mel.shape == (1, *official[name].shape)
    torch.testing.assert_close(mel[0], official[name], atol=1e-4, rtol=0)


@pytest.mark.usefixtures("needs_torchaudio")
def test_mel_bands_agree_with_the_official_ones(official: dict[str, torch.Tensor]):
    torch.testing.assert_close(LogMel().bands, official["mel_basis"], atol=1e-6, rtol=0)


@pytest.mark.usefixtures("needs_torchaudio")
def test_shapes_and_silence():
    mel = LogMel(sample_rate=16000, n_fft=512, hop=128, n_mels=40)
    silence = mel(torch.zeros(3, 1, 1000))
    assert silence.shape == (3, 40, 8)
    torch.testing.assert_close(silence, torch.full_like(silence, 1e-5).log())
    waveform = torch.randn(3, 1000)
    assert torch.equal(mel(waveform), mel(waveform[:, None]))
    assert list(mel.state_dict()) == []


@pytest.mark.usefixtures("needs_torchaudio")
@pytest.mark.parametrize("shape", [(1000,), (1, 2, 1000), (1, 512)])
def test_invalid_waveforms_are_refused(shape: tuple[int, ...]):
    with pytest.raises(UserError):
        LogMel()(torch.zeros(shape))


def test_bands_above_half_the_sample_rate_are_refused():
    with pytest.raises(UserError, match="8000"):
        LogMel(sample_rate=8000)


def test_without_torchaudio_the_error_names_the_reason(without_torchaudio):
    with pytest.raises(UserError, match="a mel spectrogram needs torchaudio, which cannot be imported"):
        LogMel()


def by_definition(waveform: torch.Tensor, rate: int, hop: int, bands: int, settings: MelSettings) -> torch.Tensor:
    """Return the mel spectrogram of (L,), float64 (bands, frames), without an FFT and without torchaudio."""

    def to_mel(hertz: torch.Tensor) -> torch.Tensor:
        if settings.mel_scale == "htk":
            return 2595 * torch.log10(1 + hertz / 700)
        above = 15 + 27 * torch.log(hertz.clamp(min=1e-9) / 1000) / math.log(6.4)
        return torch.where(hertz < 1000, 3 * hertz / 200, above)

    def to_hertz(mel: torch.Tensor) -> torch.Tensor:
        if settings.mel_scale == "htk":
            return 700 * (10 ** (mel / 2595) - 1)
        return torch.where(mel < 15, 200 * mel / 3, 1000 * torch.exp((mel - 15) * math.log(6.4) / 27))

    n_fft, window = settings.n_fft, settings.win_length or settings.n_fft
    ends = to_mel(torch.tensor([settings.f_min, settings.f_max], dtype=torch.float64))
    edges = to_hertz(torch.linspace(float(ends[0]), float(ends[1]), bands + 2, dtype=torch.float64))
    hertz = torch.arange(n_fft // 2 + 1, dtype=torch.float64) * rate / n_fft
    low, middle, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    matrix = torch.minimum((hertz - low) / (middle - low), (high - hertz) / (high - middle)).clamp(min=0)
    if settings.norm == "slaney":
        matrix = matrix * 2 / (high - low)
    left = (n_fft - window) // 2
    hann = torch.zeros(n_fft, dtype=torch.float64)
    hann[left : left + window] = 0.5 - 0.5 * torch.cos(2 * math.pi * torch.arange(window) / window)
    total = 2 * (n_fft // 2) if settings.padding == "center" else n_fft - hop
    padded = np.pad(waveform.double().numpy(), (total // 2, total - total // 2), mode="reflect")
    waves = torch.exp(-2j * math.pi * torch.outer(torch.arange(n_fft // 2 + 1), torch.arange(n_fft)).double() / n_fft)
    frames = torch.from_numpy(padded).unfold(0, n_fft, hop) * hann
    levels = matrix @ (frames.to(waves) @ waves.T).abs().T ** settings.power
    levels = levels.clamp(min=settings.floor)
    decibels = (10 if settings.power == 2 else 20) * levels.log10()
    return {"natural": levels.log(), "log10": levels.log10(), "db": decibels}[settings.log]


@pytest.mark.usefixtures("needs_torchaudio")
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"win_length": 100},
        {"mel_scale": "htk", "norm": None},
        {"power": 2, "floor": 1e-10, "log": "log10"},
        {"log": "db"},
        {"power": 2, "log": "db"},
        {"padding": "hop", "f_min": 100.0, "f_max": 3000.0},
    ],
)
def test_every_convention_agrees_with_its_definition(changed: dict):
    settings = MelSettings(**{"n_fft": 128, "f_max": 4000.0} | changed)
    waveform = 0.3 * torch.randn(2, 640, generator=torch.Generator().manual_seed(0))
    mel = LogMel(sample_rate=8000, hop=64, n_mels=12, **asdict(settings))(waveform)
    assert mel.shape == (2, 12, 10 if settings.padding == "hop" else 11)
    expected = torch.stack([by_definition(one, 8000, 64, 12, settings) for one in waveform])
    torch.testing.assert_close(mel.double(), expected, atol=2e-3, rtol=1e-4)


@pytest.mark.usefixtures("needs_torchaudio")
def test_a_long_waveform_is_transformed_in_blocks(monkeypatch: pytest.MonkeyPatch):
    waveform = torch.randn(1, 5000)
    whole = LogMel(hop=100)(waveform)
    monkeypatch.setattr(mel_module, "BLOCK_FRAMES", 7)
    torch.testing.assert_close(LogMel(hop=100)(waveform), whole)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nfft": 4}, "mel_settings has 'nfft': expected some of n_fft, win_length, f_min"),
        ([1], r"mel_settings is \[1\]: expected a mapping"),
        ({"n_fft": 1}, "n_fft is 1: expected a whole number from 2"),
        ({"win_length": 2000}, "win_length is 2000: expected at most n_fft=1024"),
        ({"mel_scale": "mel"}, "mel_scale is 'mel': expected 'slaney' or 'htk'"),
        ({"norm": "l1"}, "norm is 'l1': expected 'slaney' or null"),
        ({"power": True}, "power is True: expected 1 or 2"),
        ({"log": "ln"}, "log is 'ln': expected 'natural' or 'log10' or 'db'"),
        ({"floor": 0}, "floor is 0: expected a number from 1e-30"),
    ],
)
def test_impossible_settings_are_refused(settings: object, message: str):
    with pytest.raises(UserError, match=message):
        MelSettings.of(settings)


def test_a_hop_longer_than_the_window_needs_the_padding_center():
    MelSettings().check(22050, 2048)
    with pytest.raises(UserError, match="padding 'hop' needs an n_fft of at least the hop, 2048 samples, got 1024"):
        MelSettings(padding="hop").check(22050, 2048)
