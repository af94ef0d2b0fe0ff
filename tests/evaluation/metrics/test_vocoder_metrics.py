"""Tests of the distances of a generated waveform from its recording, on changes of known size."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.metrics import pitch_error as pitch_module
from sashimi_evaluation.metrics import speech_quality
from sashimi_evaluation.metrics import stft_distance as stft_module
from sashimi_evaluation.metrics.cepstral_distortion import mel_cepstral_distortion
from sashimi_evaluation.metrics.pitch_error import pitch_error, pitch_track
from sashimi_evaluation.metrics.stft_distance import RESOLUTIONS, stft_distance

RATE = 16_000


def voice(pitch: float | np.ndarray = 150.0, seconds: float = 1.0, rate: int = RATE, noise: float = 1e-3) -> np.ndarray:
    """Return harmonics of a pitch up to 3 kHz with a little noise."""
    pitches = np.broadcast_to(pitch, round(seconds * rate))
    phase = 2 * np.pi * np.cumsum(pitches) / rate
    tone = sum(np.sin(number * phase) / number for number in range(1, 20))
    return 0.1 * tone + noise * np.random.default_rng(0).standard_normal(len(pitches))


def test_the_stft_distance_of_equal_and_louder_waveforms() -> None:
    recording = np.random.default_rng(0).standard_normal(5000)
    same = stft_distance(recording, recording)
    assert (same.convergence, same.log_magnitude, same.total) == (0, 0, 0)
    louder = stft_distance(1.5 * recording, recording)
    assert louder.convergence == pytest.approx(0.5, rel=1e-6)
    assert louder.log_magnitude == pytest.approx(np.log(1.5), rel=1e-6)
    assert louder.total == pytest.approx(0.5 + np.log(1.5), rel=1e-6)
    silent = stft_distance(np.zeros(5000), recording)
    assert silent.convergence == pytest.approx(1.0, abs=1e-3)
    assert np.isnan(stft_distance(recording, np.zeros(5000)).convergence)
    assert np.isfinite(stft_distance(recording, np.zeros(5000)).log_magnitude)


def test_the_stft_distance_agrees_with_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(1)
    recording, generated = random.standard_normal(3000), random.standard_normal(3000)
    expected = np.zeros(2)
    for n_fft, window, hop in RESOLUTIONS:
        hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
        magnitudes = []
        for samples in (generated, recording):
            padded = np.concatenate([np.zeros(window // 2), samples, np.zeros(window // 2)])
            starts = range(0, len(padded) - window + 1, hop)
            magnitudes.append(np.array([np.abs(np.fft.fft(padded[s : s + window] * hann, n_fft)) for s in starts]))
        mine, real = (one[:, : n_fft // 2 + 1] for one in magnitudes)
        expected[0] += np.linalg.norm(mine - real) / np.linalg.norm(real) / len(RESOLUTIONS)
        expected[1] += np.abs(np.log(mine) - np.log(real)).mean() / len(RESOLUTIONS)
    for block in (4096, 7):
        monkeypatch.setattr(stft_module, "_BLOCK", block)
        distance = stft_distance(generated, recording)
        assert [distance.convergence, distance.log_magnitude] == pytest.approx(expected, rel=1e-6)


def test_the_mel_cepstral_distortion_of_a_known_filter() -> None:
    """A filter that adds 6 dB · cos(k ω) on the mel scale has a distortion of 6 dB / sqrt 2."""
    recording = np.random.default_rng(0).standard_normal(8 * RATE) * 0.1
    assert mel_cepstral_distortion(recording, recording, RATE) == 0
    assert mel_cepstral_distortion(0.5 * recording, recording, RATE) == pytest.approx(0, abs=1e-4)  # the level
    hertz = np.fft.rfftfreq(len(recording), 1 / RATE)
    mel = np.where(hertz < 1000, 3 * hertz / 200, 15 + 27 * np.log(np.maximum(hertz, 1e-9) / 1000) / np.log(6.4))
    for order in (1, 3, 6):
        gains = 6 * np.cos(np.pi * order * mel / mel[-1])
        filtered = np.fft.irfft(np.fft.rfft(recording) * 10 ** (gains / 20), len(recording))
        assert mel_cepstral_distortion(filtered, recording, RATE) == pytest.approx(6 / 2**0.5, rel=0.06)
    assert mel_cepstral_distortion(voice(150), voice(220), RATE) > 1


def test_silent_frames_do_not_count_for_the_mel_cepstral_distortion() -> None:
    recording = np.concatenate([voice(), np.zeros(RATE)])
    noisy = recording + np.concatenate(
        [np.zeros(RATE + 800), 1e-3 * np.random.default_rng(2).standard_normal(RATE - 800)]
    )
    assert mel_cepstral_distortion(noisy, recording, RATE) == pytest.approx(0, abs=0.05)
    assert np.isnan(mel_cepstral_distortion(recording, np.zeros(2 * RATE), RATE))


@pytest.mark.parametrize("rate", [8000, 22050, 48000, 96000])
def test_every_rate_and_short_clips(rate: int) -> None:
    for seconds in (0.001, 0.03, 0.5):
        recording = voice(seconds=seconds, rate=rate)
        assert mel_cepstral_distortion(recording, recording, rate) == 0
        assert stft_distance(recording, recording).total == 0
        errors = pitch_error(recording, recording, rate)
        assert (errors.squares, errors.different) == (0, 0)
        assert errors.frames >= 1


def test_the_pitch_error_is_the_interval_in_cents() -> None:
    errors = pitch_error(voice(150 * 2 ** (1 / 12)), voice(150), RATE)  # a semitone
    assert errors.both > 90
    assert errors.different == 0
    assert np.sqrt(errors.squares / errors.both) == pytest.approx(100, abs=1)


def test_wrong_voicing_is_counted() -> None:
    noise = 0.05 * np.random.default_rng(3).standard_normal(RATE)
    recording = np.concatenate([voice(), noise])
    generated = np.concatenate([noise, voice()])
    errors = pitch_error(generated, recording, RATE)
    assert errors.frames == 197
    assert errors.different > 0.9 * errors.frames
    assert pitch_error(recording, recording, RATE).different == 0


def test_a_long_waveform_is_tracked_in_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    glide = voice(np.linspace(100, 300, 3 * RATE), 3.0)
    whole = pitch_track(glide, RATE)
    assert whole[[10, 150, 280]] == pytest.approx([108, 201, 288], rel=0.02)
    monkeypatch.setattr(pitch_module, "SEGMENT_SECONDS", 0.7)
    np.testing.assert_allclose(pitch_track(glide, RATE), whole, rtol=0.01)


@pytest.mark.parametrize("name", speech_quality.ADVICE)
def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(speech_quality, "find_spec", lambda name: object())
    speech_quality.require_package(name, "--x")
    monkeypatch.setattr(speech_quality, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=rf"--x needs the package {name}: pip install {name}.*; or leave out --x"):
        speech_quality.require_package(name, "--x")


def test_pesq_and_stoi_get_the_right_rates_and_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """The packages are replaced, so that this is tested where they are not installed."""
    calls = []

    def score(rate: int, reference: np.ndarray, degraded: np.ndarray, mode: str, on_error: object) -> float:
        calls.append((rate, len(reference), reference.std() > degraded.std(), mode))
        return -1.0 if on_error == "values" and mode == "nb" else 3.5

    values = SimpleNamespace(RETURN_VALUES="values")
    monkeypatch.setitem(sys.modules, "pesq", SimpleNamespace(pesq=score, PesqError=values))
    recording = voice(rate=32_000)
    assert speech_quality.pesq(0.5 * recording, recording, 32_000) == 3.5
    assert np.isnan(speech_quality.pesq(0.5 * recording, recording, 11_025))
    assert calls == [(16_000, 16_000, True, "wb"), (8_000, 23_220, True, "nb")]
    assert np.isnan(speech_quality.pesq(recording, np.zeros(32_000), 32_000))
    monkeypatch.setitem(sys.modules, "pystoi", SimpleNamespace(stoi=lambda x, y, rate: x.std() / y.std() * rate))
    assert speech_quality.stoi(0.5 * recording, recording, 1000) == pytest.approx(2000)


@pytest.mark.parametrize("name", ["pesq", "stoi"])
def test_the_packages_score_a_recording_and_noise(shared_data: Path, name: str) -> None:
    pytest.importorskip({"stoi": "pystoi"}.get(name, name), reason=f"the package for {name} is not installed")
    recording, rate = soundfile.read(shared_data / "ljspeech" / "LJ001-0002.flac")
    noisy = recording + 0.02 * np.random.default_rng(0).standard_normal(len(recording))
    score = getattr(speech_quality, name)
    best, (low, high) = {"pesq": (4.6, (1, 2.5)), "stoi": (1.0, (0.5, 0.99))}[name]
    assert score(recording, recording, rate) == pytest.approx(best, abs=0.1)
    assert low <= score(noisy, recording, rate) < high
    if name == "stoi":
        assert np.isnan(score(noisy[:4000], recording[:4000], rate))
