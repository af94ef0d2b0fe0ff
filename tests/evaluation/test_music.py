"""Tests of the onsets and the pitch classes of clips."""

import numpy as np
import pytest

from sashimi_evaluation.metrics.intervals import Resampling
from sashimi_evaluation.metrics.music import PITCH_CLASSES, music_metrics, music_properties, onset_times

RATE = 16000


def notes(times: list[float], semitones: list[int], seconds: float, level: float = 0.2) -> np.ndarray:
    """Return decaying notes with six harmonics; a semitone counts from the A of 220 Hz."""
    time = np.arange(round(seconds * RATE)) / RATE
    audio = np.zeros(len(time))
    for start, semitone in zip(times, semitones, strict=True):
        own = np.maximum(time - start, 0)
        tone = sum(np.sin(2 * np.pi * 220 * 2 ** (semitone / 12) * k * own) / k for k in range(1, 7))
        audio += level * np.where(time >= start, np.exp(-3 * own) * np.minimum(own / 0.005, 1), 0) * tone
    return audio


def test_the_onsets_of_notes_are_found() -> None:
    rng = np.random.default_rng(0)
    times = np.cumsum(rng.uniform(0.12, 0.4, 20))
    found = onset_times(notes(list(times), list(rng.integers(-7, 17, 20)), times[-1] + 1), RATE)
    assert len(found) == len(times)
    assert np.abs(found - times).max() < 0.03


def test_a_chord_is_one_onset_and_a_held_tone_has_no_others() -> None:
    assert len(onset_times(notes([0.5, 0.5, 0.5], [0, 4, 7], 2), RATE)) == 1
    time = np.arange(2 * RATE) / RATE
    vibrato = np.sin(2 * np.pi * 440 * time + 4 * np.sin(2 * np.pi * 6 * time))
    assert len(onset_times(0.2 * vibrato, RATE)) == 1


@pytest.mark.parametrize("waveform", [np.zeros(RATE), np.zeros(10), np.full(5, 0.1)])
def test_silence_and_very_short_clips_have_no_notes(waveform: np.ndarray) -> None:
    properties = music_properties(waveform, RATE)
    assert np.isnan(properties.pitch_classes).all()
    assert properties.onsets_per_second == 0 or len(waveform) < 10


def test_the_level_does_not_matter() -> None:
    audio = notes([0.1, 0.5, 0.9], [0, 3, 7], 1.5)
    assert np.array_equal(onset_times(audio, RATE), onset_times(audio / 100, RATE))


@pytest.mark.parametrize("semitone", range(12))
def test_pitch_classes(semitone: int) -> None:
    shares = music_properties(notes([0.0], [semitone], 1.0), RATE).pitch_classes
    assert shares.sum() == pytest.approx(1)
    name = PITCH_CLASSES[(9 + semitone) % 12]
    assert PITCH_CLASSES[int(shares.argmax())] == name
    # Harmonics 1, 2 and 4 are octaves; the others have smaller amplitudes.
    assert shares.max() > 0.5


@pytest.mark.parametrize("rate", [8000, 22050, 44100])
def test_other_rates_give_the_same(rate: int) -> None:
    time = np.arange(2 * rate) / rate
    place = time % 0.5
    tone = 0.2 * np.sin(2 * np.pi * 440 * time) * np.clip(np.minimum(place / 0.005, (0.4 - place) / 0.1), 0, 1)
    properties = music_properties(tone, rate)
    assert properties.onsets_per_second == pytest.approx(2)
    assert properties.pitch_classes[9] > 0.95


def test_metrics_of_the_same_and_of_another_key() -> None:
    def clips(transposed: int) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(transposed)
        scale = np.array([0, 2, 4, 5, 7, 9, 11])
        own = [
            music_properties(notes(list(np.arange(8) / 4), list(rng.choice(scale, 8) + transposed), 2.2), RATE)
            for _ in range(8)
        ]
        return {
            "onsets_per_second": np.array([each.onsets_per_second for each in own]),
            "pitch_classes": np.stack([each.pitch_classes for each in own]),
        }

    reference = clips(0)
    other = clips(12)
    same, different = (
        {metric.key: metric for metric in music_metrics(reference, own, Resampling(50))} for own in (other, clips(6))
    )
    assert same["onsets"].value == pytest.approx(8 / 2.2, rel=0.05)
    assert same["pitch_class_distance"].value < different["pitch_class_distance"].value / 1.5
    assert same["pitch_class_distance"].interval.high < different["pitch_class_distance"].interval.low


def test_sets_without_a_sound_have_no_distance() -> None:
    silent = {"onsets_per_second": np.zeros(2), "pitch_classes": np.full((2, 12), np.nan)}
    assert [metric.key for metric in music_metrics(silent, silent, Resampling(10))] == ["onsets"]
