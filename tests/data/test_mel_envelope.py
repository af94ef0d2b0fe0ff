"""Tests of the envelope of mel spectrograms: removed and restored, with every convention, at the ends and in blocks."""

import math

import pytest
import torch
from torch import Tensor

from sashimi_diffusion.data import mel_envelope
from sashimi_diffusion.data.mel import LogMel
from sashimi_diffusion.data.mel_envelope import MelEnvelope
from sashimi_diffusion.errors import UserError

pytestmark = pytest.mark.usefixtures("needs_torchaudio")
RATE = 22050


def voice(seconds: float = 0.5) -> Tensor:
    """Return harmonics of a gliding pitch that become louder and softer, above quiet noise, (1, 1, L)."""
    t = torch.arange(int(seconds * RATE)) / RATE
    phase = 2 * math.pi * torch.cumsum(150 + 50 * torch.sin(3 * t), dim=0) / RATE
    tone = sum(torch.sin(k * phase) / k for k in range(1, 30))
    noise = torch.randn(len(t), generator=torch.Generator().manual_seed(0))
    return (0.05 * tone * (1.2 + torch.sin(8 * t)) + 1e-3 * noise)[None, None]


def snr_db(signal: Tensor, copy: Tensor) -> float:
    return 10 * math.log10(float(signal.var() / (copy - signal).var()))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"padding": "hop"},
        {"power": 2, "log": "db"},
        {"log": "log10", "mel_scale": "htk"},
        {"norm": None, "win_length": 800},
    ],
)
def test_color_is_about_the_inverse_of_whiten(settings: dict) -> None:
    transform, waveform = LogMel(**settings), voice()
    envelope, mel = MelEnvelope(transform), transform(waveform)
    white = envelope.whiten(waveform, mel)
    assert white.shape == waveform.shape
    assert 0.7 < white.std() < 1.5
    assert snr_db(waveform, envelope.color(white, mel)) > 18


def test_colored_noise_has_the_levels_of_the_mel() -> None:
    transform = LogMel()
    mel = transform(voice())
    noise = torch.randn(1, 1, int(0.5 * RATE), generator=torch.Generator().manual_seed(1))
    found = transform(MelEnvelope(transform).color(noise, mel))
    assert (found - mel).mean(dim=-1).abs().mean() < 0.5  # nats, in each band
    assert (transform(noise) - mel).mean(dim=-1).abs().mean() > 3


def test_windows_shorter_than_two_hops_are_refused() -> None:
    with pytest.raises(UserError, match=r"at least two hops \(512 samples\), got 400"):
        MelEnvelope(LogMel(win_length=400))


def test_white_noise_stays_about_as_it_is() -> None:
    transform = LogMel()
    noise = torch.randn(1, 1, RATE, generator=torch.Generator().manual_seed(1))
    white = MelEnvelope(transform).whiten(noise, transform(noise))
    assert 0.95 < white.std() < 1.25


def test_whitening_does_not_amplify_the_ends() -> None:
    transform, waveform = LogMel(), voice()[..., 3000:7096]
    white = MelEnvelope(transform).whiten(waveform, transform(waveform))[0, 0]
    ends, middle = torch.cat([white[:256], white[-256:]]), white[512:-512]
    assert ends.std() < 2 * middle.std()


def test_blocks_of_frames_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    transform, waveform = LogMel(), voice().repeat(2, 1, 1)
    envelope, mel = MelEnvelope(transform), transform(waveform)
    expected = envelope.whiten(waveform, mel)
    monkeypatch.setattr(mel_envelope, "BLOCK_FRAMES", 5)
    torch.testing.assert_close(envelope.whiten(waveform, mel), expected, rtol=1e-4, atol=1e-4)


def test_the_last_frame_of_a_short_mel_is_repeated() -> None:
    transform, waveform = LogMel(), voice()
    envelope, mel = MelEnvelope(transform), transform(waveform)
    longer = torch.cat([mel[..., :-3], mel[..., -4:-3].expand(-1, -1, 3)], dim=-1)
    assert torch.equal(envelope.color(waveform, mel[..., :-3]), envelope.color(waveform, longer))


@pytest.mark.parametrize("length", [1, 256, 512, 513, 1000])
def test_waveforms_of_any_length_are_colored(length: int) -> None:
    transform = LogMel()
    mel = transform(voice())[..., :2]
    colored = MelEnvelope(transform).color(torch.ones(1, 1, length), mel)
    assert colored.shape == (1, 1, length)
    assert torch.isfinite(colored).all()
