"""Tests of the signal properties of a clip: level, noise floor, silence and clipping."""

import numpy as np
import pytest

from sashimi_evaluation.metrics.signal import signal_properties

RATE = 8000


def test_level_of_a_sine():
    sine = np.sin(2 * np.pi * 100 * np.arange(RATE) / RATE)
    signal = signal_properties(sine, RATE)
    assert signal.seconds == 1
    assert signal.level == pytest.approx(10 * np.log10(0.5), abs=1e-6)
    assert signal.loudest == pytest.approx(signal.level, abs=1e-3)
    assert not signal.silent


def test_the_noise_floor_is_that_of_the_pauses():
    noise = 0.001 * np.random.default_rng(0).standard_normal(RATE)
    noise[RATE // 2 :] += 0.5 * np.sin(np.arange(RATE // 2))
    assert signal_properties(noise, RATE).noise_floor == pytest.approx(-60, abs=1)


def test_the_noise_floors_ignore_the_padding_around_the_sound():
    sound = 0.5 * np.sin(np.arange(RATE))
    sound[RATE // 4 : RATE // 2] *= 0.05  # 26 dB
    padded = np.pad(sound, RATE)
    assert signal_properties(padded, RATE).noise_floor == signal_properties(sound, RATE).noise_floor
    assert signal_properties(padded + 1e-5, RATE).noise_floor == pytest.approx(-100)  # noise is no padding
    assert signal_properties(padded, RATE).inner_floor == pytest.approx(
        signal_properties(sound, RATE).level - 25, abs=1
    )
    assert signal_properties(np.zeros(RATE), RATE).inner_floor == -120


def test_the_length_of_a_word_ends_with_its_sound():
    word = 0.001 * np.random.default_rng(0).standard_normal(RATE)
    word[RATE // 4 : RATE // 2] += 0.5 * np.sin(np.arange(RATE // 4))
    assert signal_properties(word, RATE).word_seconds == pytest.approx(0.25, abs=0.021)
    word[RATE // 2 :] += 0.5 * np.sin(np.arange(RATE // 2))
    assert signal_properties(word, RATE).word_seconds == pytest.approx(0.75, abs=0.021)
    assert signal_properties(np.zeros(RATE), RATE).word_seconds == 0
    assert signal_properties(np.ones(10), RATE).word_seconds == pytest.approx(10 / RATE)


@pytest.mark.parametrize(("scale", "silent"), [(0.0, True), (0.0005, True), (0.01, False)])
def test_silence(scale, silent):
    assert signal_properties(scale * np.sin(np.arange(RATE)), RATE).silent is silent


def test_one_loud_moment_is_not_silence():
    waveform = np.zeros(RATE)
    waveform[100:260] = 0.1
    assert not signal_properties(waveform, RATE).silent


def test_clipping_is_counted():
    waveform = np.zeros(100)
    waveform[:3] = [1.0, -1.0, 32767 / 32768]
    assert signal_properties(waveform, RATE).clipped == pytest.approx(0.03)


def test_a_single_sample_has_a_level():
    assert signal_properties(np.asarray([0.1]), RATE).level == pytest.approx(-20)
