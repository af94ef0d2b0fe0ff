"""Tests of the log-mel spectrogram against that of the official vocoder code."""

import pytest
import torch

from sashimi_diffusion.data.mel import LogMel
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
