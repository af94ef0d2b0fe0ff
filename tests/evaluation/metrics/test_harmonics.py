"""Tests of the voiced share and of the harmonics-to-noise ratio on harmonics and noise of known power."""

import numpy as np
import pytest
import soundfile

from sashimi_evaluation.metrics.harmonics import (
    BANDS,
    harmonic_metrics,
    harmonic_properties,
    harmonics_to_noise,
)
from sashimi_evaluation.metrics.intervals import Resampling
from sashimi_evaluation.preparation import Preparation

FEW_DRAWS = Resampling(resamples=20)
TAKES = ("_0", "_1", "_2", "_3", "_4")


def harmonics_and_noise(rate, ratios, pitch=120.0, seconds=1.0, seed=0):
    """Return harmonics of equal amplitude with white noise in each band, with these ratios of their powers in dB."""
    random = np.random.default_rng(seed)
    length = round(seconds * rate)
    time, frequencies = np.arange(length) / rate, np.fft.rfftfreq(length, 1 / rate)
    spectrum = np.fft.rfft(random.standard_normal(length))
    total = np.zeros(length)
    for (low, high), ratio in zip(BANDS, ratios, strict=False):
        numbers = [number for number in range(1, 1 + int(high / pitch)) if low <= number * pitch < high]
        tone = sum(np.cos(2 * np.pi * number * pitch * time + random.uniform(0, 7)) for number in numbers)
        noise = np.fft.irfft(np.where((frequencies >= low) & (frequencies < high), spectrum, 0), length)
        scale = np.sqrt(np.square(tone).mean() / np.square(noise).mean() / 10 ** (ratio / 10))
        total += tone + scale * noise
    return 0.01 * total


def ratios_of(clips, rate):
    periodicity = np.mean([harmonic_properties(clip, rate).periodicity for clip in clips], axis=0)
    return harmonics_to_noise(periodicity)


@pytest.mark.parametrize("pitch", [95.0, 133.3, 310.0])
@pytest.mark.parametrize("ratios", [(20, 12, 10, 8), (10, -3, -5, -6), (6, 0, -5, -8)])
def test_the_ratio_of_known_signals_within_a_decibel(pitch, ratios):
    clips = [harmonics_and_noise(8000, ratios, pitch, seed=seed) for seed in range(8)]
    np.testing.assert_allclose(ratios_of(clips, 8000)[:4], ratios, atol=1)


def test_a_higher_rate_has_the_highest_band():
    ratios = (10, 5, 2, 0, -3)
    clips = [harmonics_and_noise(16000, ratios, seed=seed) for seed in range(4)]
    np.testing.assert_allclose(ratios_of(clips, 16000), ratios, atol=1)
    assert np.isnan(ratios_of([harmonics_and_noise(8000, ratios)], 8000)[4])


def test_the_level_does_not_matter():
    clip = harmonics_and_noise(8000, (10, 5, 0, -5))
    loud, quiet = (harmonic_properties(gain * clip, 8000) for gain in (3, 0.3))
    np.testing.assert_allclose(loud.periodicity, quiet.periodicity)
    assert loud.voiced_share == quiet.voiced_share == 1


def test_noise_is_not_voiced_and_pauses_do_not_count():
    noise = 0.1 * np.random.default_rng(0).standard_normal(8000)
    assert harmonic_properties(noise, 8000).voiced_share < 0.05
    voice = harmonics_and_noise(8000, (20, 10, 10, 10))
    mixed = np.concatenate([voice, noise * voice.std() / noise.std(), np.zeros(8000)])
    assert harmonic_properties(mixed, 8000).voiced_share == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("clip", [np.zeros(8000), np.full(8000, 1e-5), np.asarray([0.1]), np.ones(8000)])
@pytest.mark.parametrize("rate", [100, 8000, 44100])
def test_clips_without_a_voice_have_no_ratio(clip, rate):
    properties = harmonic_properties(clip, rate)
    assert np.isnan(properties.voiced_share) or properties.voiced_share == 0
    assert np.isnan(properties.periodicity).all()


def columns(clips, rate=8000):
    each = [harmonic_properties(clip, rate) for clip in clips]
    return {
        "voiced_share": np.asarray([own.voiced_share for own in each]),
        "periodicity": np.stack([own.periodicity for own in each]),
    }


def test_the_metrics_of_a_set():
    clips = [harmonics_and_noise(8000, (10, 5, 0, -5), seed=seed) for seed in range(5)]
    metrics = {metric.key: metric for metric in harmonic_metrics(columns(clips), FEW_DRAWS)}
    assert list(metrics) == ["voiced", "hnr_0_1", "hnr_1_2", "hnr_2_3", "hnr_3_4"]
    assert metrics["voiced"].value == 1
    assert metrics["hnr_1_2"].value == pytest.approx(5, abs=1)
    for metric in metrics.values():
        assert metric.interval.low <= metric.value <= metric.interval.high
        assert metric.note == ""


def test_clips_without_a_voice_are_left_out_and_named():
    voices = [harmonics_and_noise(8000, (10, 5, 0, -5), seed=seed) for seed in range(3)]
    metrics = {metric.key: metric for metric in harmonic_metrics(columns([*voices, np.zeros(8000)]), FEW_DRAWS)}
    assert metrics["voiced"].value == 1  # a silent clip has no sounding frame
    assert metrics["hnr_0_1"].note == "of the 3 of 4 clips with a voiced frame"
    assert metrics["hnr_0_1"].value == harmonic_metrics(columns(voices), FEW_DRAWS)[1].value
    assert harmonic_metrics(columns([np.zeros(8000)]), FEW_DRAWS) == []


def test_recorded_digits_have_the_documented_ratios(shared_data):
    """The held-out recordings of the Free Spoken Digit Dataset, prepared as the training data of the bundled model."""
    files = [file for file in sorted((shared_data / "fsdd").glob("*.flac")) if file.stem[-2:] in TAKES]
    assert len(files) == 300
    clips = [Preparation(8000, 5120, 0.04).prepare(*soundfile.read(file, dtype="float32"), 1.0)[0] for file in files]
    metrics = harmonic_metrics(columns(clips), FEW_DRAWS)
    assert metrics[0].value == pytest.approx(0.69, abs=0.01)
    ratios = [metric.value for metric in metrics[1:]]
    assert ratios == pytest.approx([9.5, -3.8, -7.3, -9.7], abs=0.2)
