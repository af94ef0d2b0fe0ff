"""Tests of the long-term spectrum, its distance from the reference, and lines, on noise of known spectrum."""

import numpy as np
import pytest

from sashimi_evaluation.metrics.intervals import Resampling
from sashimi_evaluation.metrics.spectrum import clip_spectrum, long_term_spectrum, spectrum_metrics

FEW_DRAWS = Resampling(resamples=20)


def noise(seed, rate=8000, gain=lambda hz: np.ones_like(hz), seconds=2.0, level=0.1):
    """Return noise whose amplitude spectrum is ``gain``."""
    length = round(seconds * rate)
    spectrum = np.fft.rfft(np.random.default_rng(seed).standard_normal(length))
    clip = np.fft.irfft(spectrum * gain(np.fft.rfftfreq(length, 1 / rate)), length)
    return level * clip / clip.std()


def spectra(clips, rate=8000):
    return {"spectrum": np.stack([clip_spectrum(clip, rate) for clip in clips])}


def metrics_of(real, clips, **options):
    return {metric.key: metric for metric in spectrum_metrics(real, clips, FEW_DRAWS, **options)}


@pytest.fixture(scope="module")
def real():
    return spectra([noise(seed) for seed in range(20)])


def test_white_noise_has_a_flat_spectrum(real):
    levels = long_term_spectrum(real["spectrum"])
    assert levels.shape == (39,)
    np.testing.assert_allclose(levels, 0, atol=0.3)
    assert long_term_spectrum(spectra([noise(0, 16000)], 16000)["spectrum"]).shape == (79,)
    assert long_term_spectrum(spectra([noise(0, 44100)], 44100)["spectrum"]).shape == (79,)
    assert long_term_spectrum(spectra([np.zeros(8000)])["spectrum"]).shape == (0,)


def test_the_same_spectrum_at_other_levels_is_near(real):
    metrics = metrics_of(real, spectra([noise(seed, level=0.01 * seed) for seed in range(20, 40)]))
    assert metrics["spectrum_distance"].value < 0.3
    assert abs(metrics["excess_3500_4000"].value) < 0.3
    assert abs(metrics["line_1000"].value) < 0.3
    for metric in metrics.values():
        assert metric.interval.low <= metric.value <= metric.interval.high


def test_an_excess_at_the_top_is_measured(real):
    louder = spectra([noise(seed, gain=lambda hz: np.where(hz >= 3500, 2**0.5, 1)) for seed in range(20)])
    metrics = metrics_of(real, louder)
    excess, below = 34 / 39 * 10 * np.log10(2), 5 / 39 * 10 * np.log10(2)  # relative to the mean of the bands
    assert metrics["excess_3500_4000"].value == pytest.approx(excess, abs=0.2)
    assert metrics["spectrum_distance"].value == pytest.approx(
        np.sqrt(5 / 39 * excess**2 + 34 / 39 * below**2), abs=0.2
    )
    assert metrics["spectrum_distance"].better == "lower"


def test_lines_stand_above_their_neighbors(real):
    time = np.arange(16000) / 8000
    in_a_bin = 0.1**2 / 4000 * 1.5 * 15.625  # power of the noise; a Hann window has a bandwidth of 1.5 bins
    line = np.sqrt(2 * 10 * in_a_bin) * np.cos(2 * np.pi * 2000 * time)
    metrics = metrics_of(real, spectra([noise(seed) + line for seed in range(20)]))
    # Levels of noise vary, and their mean in dB is 2.5 dB below the level of their mean; a line has a steady level.
    assert metrics["line_2000"].value == pytest.approx(10 * np.log10(11) + 2.5, abs=0.7)
    assert abs(metrics["line_1000"].value) < 0.3
    assert abs(metrics["line_3000"].value) < 0.3


def test_only_lines_within_the_spectrum(real):
    metrics = metrics_of(real, real, lines=(100.0, 500.0, 3900.0, 7000.0))
    assert [key for key in metrics if key.startswith("line")] == ["line_500"]


def test_sets_are_compared_up_to_the_lowest_rate(real):
    wide = spectra([noise(seed, 16000) for seed in range(20)], 16000)
    metrics = metrics_of(real, wide)
    assert metrics["spectrum_distance"].value < 0.4
    assert "excess_4000_8000" not in metrics
    assert set(metrics_of(wide, wide)) == {*metrics, "excess_4000_8000"}


def test_silence_is_left_out(real):
    silent = {"spectrum": np.concatenate([real["spectrum"], spectra([np.zeros(8000)])["spectrum"]])}
    assert metrics_of(real, silent)["spectrum_distance"].value == pytest.approx(0, abs=1e-9)
    assert metrics_of(real, spectra([np.zeros(8000)])) == {}
    assert metrics_of(spectra([noise(0, 100)], 100), real) == {}
