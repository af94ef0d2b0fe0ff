"""Tests of the mel spectrograms of a vocoder: made with its settings, saved with it, checked before it takes them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sashimi_diffusion.data.audio import resample
from sashimi_diffusion.data.mel import LogMel
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models import SashimiDenoiser, WaveNetDenoiser
from sashimi_diffusion.pipelines import SashimiPipeline
from sashimi_diffusion.schedulers import DiffWaveScheduler

SIZES = {"embedding_sines": 8, "embedding_hidden": 8, "embedding_dim": 8}
SETTINGS = {"n_fft": 64, "f_min": 20.0, "f_max": 450.0, "log": "log10", "power": 2, "mel_scale": "htk"}


def make_pipeline(sashimi: bool = True, **options: Any) -> SashimiPipeline:
    options = {**SIZES, "sample_rate": 1000, "sample_size": 64, "mel_channels": 5, "mel_upsample": (4, 4), **options}
    torch.manual_seed(0)
    if sashimi:
        model: Any = SashimiDenoiser(d_model=4, n_layers=1, n_state=4, pool=[2, 2], **options)
    else:
        model = WaveNetDenoiser(residual_channels=4, skip_channels=4, n_layers=2, **options)
    torch.nn.init.normal_(model.output[-1].weight, std=0.3)
    return SashimiPipeline(model, DiffWaveScheduler(10, beta_end=0.2))


@pytest.fixture(scope="module")
def pipe() -> SashimiPipeline:
    return make_pipeline(mel_settings=SETTINGS)


@pytest.mark.parametrize("sashimi", [True, False])
def test_the_settings_are_saved_with_the_pipeline(tmp_path: Path, sashimi: bool) -> None:
    make_pipeline(sashimi, mel_settings=SETTINGS).save_pretrained(tmp_path)
    loaded = SashimiPipeline.from_pretrained(tmp_path)
    audio = 0.1 * torch.randn(2, 300)
    expected = LogMel(sample_rate=1000, hop=16, n_mels=5, **SETTINGS)(audio)
    torch.testing.assert_close(loaded.mel(audio), expected, rtol=0, atol=0)


def test_a_pipeline_of_an_earlier_version_has_the_default_settings(tmp_path: Path) -> None:
    make_pipeline(sample_rate=22050).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    del config["mel_settings"]
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    audio = 0.1 * torch.randn(1, 2000)
    expected = LogMel(sample_rate=22050, hop=16, n_mels=5)(audio)
    torch.testing.assert_close(SashimiPipeline.from_pretrained(tmp_path).mel(audio), expected, rtol=0, atol=0)


def test_the_mel_of_the_published_vocoder_agrees_with_the_official_code(golden) -> None:
    official = golden.tensors("g_audio/quantise_mel_features")
    pipe = make_pipeline(sample_rate=22050, mel_channels=80, mel_upsample=(16, 16))
    mel = pipe.mel(official["in.mel_pcm_int16"].float() / 2**15)
    torch.testing.assert_close(mel[0], official["out.mel_ljspeech"], atol=1e-4, rtol=0)


def test_shapes_types_and_rates_of_audio(pipe: SashimiPipeline) -> None:
    audio = 0.1 * np.random.default_rng(0).standard_normal(300)
    mel = pipe.mel(audio)
    assert (mel.shape, mel.dtype) == ((1, 5, 19), torch.float32)
    for same in (audio[None], audio[None, None], torch.from_numpy(audio), torch.from_numpy(audio).float()):
        torch.testing.assert_close(pipe.mel(same), mel)
    slower = pipe.mel(audio, sample_rate=2000)
    torch.testing.assert_close(slower, pipe.mel(resample(audio.astype(np.float32), 2000, 1000)))


@pytest.mark.parametrize(
    ("audio", "message"),
    [
        (np.zeros(300, dtype=np.int16), "numbers of int16: expected floating-point .* divide 16-bit integers by 32768"),
        ([0.0, 1.0], "audio is .0.0, 1.0.: expected a tensor or an array of floating-point numbers"),
        (np.zeros((1, 2, 300)), r"audio has shape \(1, 2, 300\): expected .* one channel"),
        (np.full(300, np.nan), "audio has 300 of 300 values that are not finite"),
        (np.zeros(32), "a mel needs more than 32 samples, got 32"),
        (np.zeros(0), r"audio has shape \(0,\): expected at least one sample"),
        (torch.zeros(0, 300), r"audio has shape \(0, 300\): expected at least one sample"),
        (torch.zeros(300, device="meta"), "audio is on the device meta"),
        (torch.zeros(300).to_sparse(), "audio is a sparse tensor"),
    ],
)
def test_audio_that_has_no_mel(pipe: SashimiPipeline, audio: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pipe.mel(audio)


@pytest.mark.parametrize("rate", [1000.5, float("nan"), float("inf"), "1000", True])
def test_sample_rates_that_are_none(pipe: SashimiPipeline, rate: Any) -> None:
    with pytest.raises(UserError, match=r"sample_rate is .*: expected a whole number of Hz"):
        pipe.mel(np.zeros(300), sample_rate=rate)


def test_a_mel_without_a_batch_and_one_of_numpy(pipe: SashimiPipeline) -> None:
    mel = pipe.mel(0.1 * torch.randn(100))

    def generate(given: Any) -> np.ndarray:
        return pipe(mel=given, num_inference_steps=2, generator=torch.Generator().manual_seed(0)).audios

    expected = generate(mel)
    assert expected.shape == (1, 1, 112)
    for same in (mel[0], mel.numpy(), mel[0].double().numpy()):
        np.testing.assert_array_equal(generate(same), expected)


@pytest.mark.parametrize(
    ("mel", "message"),
    [
        (torch.zeros(2, 9, 5), r"\(2, 9, 5\), expected \(2, 5, frames\) with 5 bands; the axes .* transpose"),
        (torch.zeros(9, 5), r"\(9, 5\), expected \(B, 5, frames\) with 5 bands; the axes .* transpose"),
        (torch.zeros(1, 80, 9), r"\(1, 80, 9\), expected \(1, 5, frames\) with 5 bands$"),
        (torch.zeros(5), r"\(5,\), expected"),
        (torch.zeros(1, 5, 0), "expected at least one frame"),
        (torch.zeros(1, 5, 9, dtype=torch.long), "mel is numbers of int64: expected floating-point numbers"),
        (np.full((5, 2), np.inf), "mel has 10 of 10 values that are not finite"),
        (np.linspace(-80, 0, 10).reshape(5, 2), "from -80 to 0, and this vocoder takes decimal logarithms .* in dB"),
        (np.linspace(0, 90, 10).reshape(5, 2), "from 0 to 90"),
        (torch.zeros(1, 5, 9, device="meta"), "mel is on the device meta"),
    ],
)
def test_a_mel_that_does_not_fit(pipe: SashimiPipeline, mel: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        pipe(mel=mel)


def test_a_mel_for_another_model() -> None:
    plain = make_pipeline(mel_channels=None)
    with pytest.raises(UserError, match="a mel spectrogram was asked for, but this model is not a vocoder"):
        plain.mel(np.zeros(300))
    with pytest.raises(UserError, match="a mel was given, but this model is not a vocoder"):
        plain(mel=torch.zeros(1, 5, 3))


@pytest.mark.parametrize(
    ("log", "power"), [("natural", 1), ("natural", 2), ("log10", 1), ("log10", 2), ("db", 1), ("db", 2)]
)
def test_the_range_holds_loud_and_silent_recordings(log: str, power: int) -> None:
    pipe = make_pipeline(mel_settings={**SETTINGS, "log": log, "power": power, "norm": None})
    tone = np.sin(2 * math.pi * 200 * np.arange(400) / 1000)
    for audio in (np.zeros(400), tone, np.sign(tone)):
        pipe(mel=pipe.mel(audio), num_inference_steps=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mel_channels": None, "mel_settings": SETTINGS}, "mel_settings were given, but mel_channels is null"),
        ({"mel_channels": None, "mel_whitening": True}, "mel_whitening is true, but mel_channels is null"),
        ({"mel_whitening": True, "pre_emphasis": 0.9}, "pre_emphasis is 0.9: expected one of them"),
        ({"mel_settings": {"f_max": 600.0}}, "half the sample rate of 1000 Hz"),
        ({"mel_settings": {"n_fft": "64"}}, "mel_settings: n_fft is '64': expected a whole number"),
    ],
)
def test_settings_that_do_not_fit_the_model(options: dict[str, Any], message: str) -> None:
    for sashimi in (True, False):
        with pytest.raises(UserError, match=message):
            make_pipeline(sashimi, **options)
