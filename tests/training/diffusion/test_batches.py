"""Tests of batches, which depend only on the seed of the run and the step."""

import dataclasses

import numpy as np
import pytest
import torch

from sashimi_diffusion.data.mel import LogMel
from sashimi_diffusion.data.mel_envelope import MelEnvelope
from sashimi_diffusion.training.config import from_tree
from sashimi_diffusion.training.diffusion.batches import Batch, BatchSource, measure_std
from sashimi_diffusion.training.diffusion.config import DiffusionConfig

LENGTH = 32


class Clips:
    """Dataset of recordings given as arrays."""

    groups = None

    def __init__(self, clips, items):
        self.clips, self.items = [np.asarray(clip, dtype=np.float32) for clip in clips], items
        self.labels = np.arange(len(items)) % 3
        self.speakers = np.arange(len(items)) % 5

    def __len__(self):
        return len(self.items)

    def usable(self, index):
        return index

    def clip(self, index):
        return self.clips[self.items[index][0]]

    def clip_length(self, index):
        return len(self.clip(index))

    def part(self, index, start, stop):
        return self.clip(index)[start:stop]


def make_source(
    clips,
    num_classes=None,
    mel=None,
    waveform_std=1.0,
    items=None,
    label_dropout=0.1,
    seed=0,
    num_speakers=None,
    timestep_exponent=1.0,
    envelope=None,
    **data,
):
    dataset = Clips(clips, items or [(i, 0) for i in range(len(clips))])
    config = from_tree(
        DiffusionConfig,
        {
            "seed": seed,
            "data": {"length": LENGTH, **data},
            "objective": {"label_dropout": label_dropout, "timestep_exponent": timestep_exponent},
        },
    )
    return BatchSource(
        dataset,
        config,
        lambda waveform: waveform / waveform_std,
        num_classes,
        mel,
        num_speakers=num_speakers,
        envelope=envelope,
    )


def tones(count=10, length=LENGTH):
    return [np.full(length, i + 1.0) for i in range(count)]


def equal(a: Batch, b: Batch) -> bool:
    pairs = [(getattr(a, field.name), getattr(b, field.name)) for field in dataclasses.fields(Batch)]
    return all(x is y or torch.equal(x, y) for x, y in pairs)


def test_a_batch_does_not_depend_on_the_batches_before_it():
    forward, jumping = make_source(tones(), 3, random_shift=4), make_source(tones(), 3, random_shift=4)
    batches = [forward.training_batch(step, range(8), 8) for step in range(6)]
    for step in (5, 0, 3):
        assert equal(batches[step], jumping.training_batch(step, range(8), 8))
    assert not equal(batches[0], batches[1])
    assert not equal(batches[0], make_source(tones(), 3, random_shift=4, seed=1).training_batch(0, range(8), 8))


def test_a_global_batch_does_not_depend_on_how_it_is_split():
    source = make_source(tones(), 3, num_speakers=5, random_shift=4, gain_db=6.0)
    whole = source.training_batch(2, range(8), 8)
    parts = [source.training_batch(2, range(start, start + 2), 8) for start in range(0, 8, 2)]
    for field in ("waveform", "noise", "timesteps", "labels", "speakers"):
        assert torch.equal(getattr(whole, field), torch.cat([getattr(part, field) for part in parts]))


def on_device(source, step, positions, global_batch):
    """Return the batch whose random numbers are drawn on the device, which is the CPU here."""
    return source.complete(source.windows(step, positions, global_batch), step, positions, global_batch)


def test_random_numbers_of_a_device_depend_on_the_seed_the_step_and_the_position():
    source = make_source(tones(), 3, num_speakers=5, random_shift=4, gain_db=6.0, mel=lambda waveform: waveform * 2)
    whole = on_device(source, 2, range(8), 8)
    parts = [on_device(source, 2, range(start, start + 2), 8) for start in range(0, 8, 2)]
    for field in dataclasses.fields(Batch):
        assert torch.equal(getattr(whole, field.name), torch.cat([getattr(part, field.name) for part in parts]))
    again = make_source(tones(), 3, num_speakers=5, random_shift=4, gain_db=6.0, mel=source.mel)
    assert equal(whole, on_device(again, 2, range(8), 8))
    for other in (on_device(source, 3, range(8), 8), on_device(make_source(tones(), 3, seed=1), 2, range(8), 8)):
        assert not torch.equal(whole.noise, other.noise)
        assert not torch.equal(whole.timesteps, other.timesteps)


def test_windows_for_a_device_are_those_of_the_cpu():
    """They have the same recordings and shifts, and labels of the same recordings."""
    source = make_source([np.arange(100)] * 7, 3, num_speakers=5, random_shift=9, label_dropout=0.0)
    for step in range(5):
        batch, windows = source.training_batch(step, range(4), 4), source.windows(step, range(4), 4)
        for field in ("waveform", "labels", "speakers"):
            assert torch.equal(getattr(batch, field), getattr(windows, field))


def test_distributions_of_the_random_numbers_of_a_device():
    clips = [np.full(LENGTH, 1.0)] * 10
    source = make_source(clips, label_dropout=0.25, num_classes=3, num_speakers=5, gain_db=6.0, waveform_std=0.5)
    batches = [on_device(source, step, range(16), 16) for step in range(200)]
    noise = torch.cat([batch.noise for batch in batches])
    assert noise.shape == (3200, 1, LENGTH)
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    timesteps = torch.stack([batch.timesteps for batch in batches])
    assert (timesteps.min(), timesteps.max()) == (0, 199)
    assert (torch.bincount(timesteps.flatten(), minlength=200) > 3).all()
    assert (torch.stack([torch.bincount(row * 16 // 200, minlength=16) for row in timesteps]) <= 2).all()
    decibels = 20 * torch.log10(torch.cat([batch.waveform for batch in batches]) * 0.5)
    assert torch.equal(decibels.amin(-1), decibels.amax(-1))  # one gain per example
    assert -6.001 < decibels.min() < -5.9 < 5.9 < decibels.max() < 6.001
    dropped = torch.cat([batch.labels for batch in batches]) == 3
    assert torch.equal(dropped, torch.cat([batch.speakers for batch in batches]) == 5)
    assert abs(dropped.float().mean() - 0.25) < 0.03


def test_each_epoch_has_every_recording_once_in_another_order():
    source = make_source(tones(7))
    seen = torch.cat([source.training_batch(step, range(4), 4).waveform[:, 0, 0] for step in range(7)]).reshape(4, 7)
    for epoch in seen:
        assert sorted(epoch.tolist()) == [1, 2, 3, 4, 5, 6, 7]
    assert len({tuple(epoch.tolist()) for epoch in seen}) == 4


def test_distributions_of_noise_timesteps_and_dropped_labels():
    source = make_source(tones(), label_dropout=0.25, num_classes=3)
    batches = [source.training_batch(step, range(16), 16) for step in range(200)]
    noise = torch.cat([batch.noise for batch in batches])
    assert abs(noise.mean()) < 0.01
    assert abs(noise.std() - 1) < 0.01
    timesteps = torch.stack([batch.timesteps for batch in batches])
    assert timesteps.min() == 0
    assert timesteps.max() == 199
    assert (torch.bincount(timesteps.flatten(), minlength=200) > 3).all()
    # Timesteps are stratified: each sixteenth of them has one example of every batch, or two at the boundaries.
    assert (torch.stack([torch.bincount(row * 16 // 200, minlength=16) for row in timesteps]) <= 2).all()
    dropped = torch.cat([batch.labels for batch in batches]) == 3
    assert abs(dropped.float().mean() - 0.25) < 0.03


def test_an_exponent_of_two_gives_half_of_the_examples_the_first_quarter_of_the_timesteps():
    source = make_source(tones(), timestep_exponent=2.0)
    training = torch.cat([source.training_batch(step, range(16), 16).timesteps for step in range(50)])
    windows = [source.complete(source.windows(step, range(16), 16), step, range(16), 16) for step in range(50)]
    for timesteps in (training, torch.cat([batch.timesteps for batch in windows])):
        assert (timesteps < 50).float().mean().item() == pytest.approx(0.5, abs=0.01)
        assert timesteps.max() == 199
    held_out = source.validation_batch(range(len(source.dataset))).timesteps
    assert torch.equal(held_out, make_source(tones()).validation_batch(range(len(source.dataset))).timesteps)


def test_labels_and_speakers_are_correct_and_dropped_together():
    source = make_source(tones(), num_classes=3, num_speakers=5, label_dropout=0.25)
    batches = [source.training_batch(step, range(16), 16) for step in range(50)]
    items = torch.cat([batch.waveform[:, 0, 0] for batch in batches]).long() - 1
    labels, speakers = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("labels", "speakers"))
    dropped = labels == 3
    assert torch.equal(dropped, speakers == 5)
    assert 0.15 < dropped.float().mean() < 0.35
    assert torch.equal(labels[~dropped], items[~dropped] % 3)
    assert torch.equal(speakers[~dropped], items[~dropped] % 5)


def test_speaker_conditioning_changes_nothing_else_in_a_batch():
    conditioned = make_source(tones(), 3, num_speakers=5, random_shift=4).training_batch(7, range(8), 8)
    unconditioned = make_source(tones(), 3, random_shift=4).training_batch(7, range(8), 8)
    assert unconditioned.speakers is None
    assert equal(dataclasses.replace(conditioned, speakers=None), unconditioned)


def test_validation_batches_never_change_and_keep_every_label():
    source = make_source(tones(12), 3, num_speakers=5, label_dropout=0.9, random_shift=4)
    first = source.validation_batch(range(12))
    source.training_batch(3, range(4), 4)
    assert equal(first, source.validation_batch(range(12)))
    assert first.labels.tolist() == [0, 1, 2] * 4
    assert first.speakers.tolist() == [index % 5 for index in range(12)]
    assert torch.equal(first.noise[5:7], source.validation_batch([5, 6]).noise)
    assert first.timesteps.tolist() == sorted(first.timesteps.tolist())


def windows(source, count=200):
    steps = range(count // 4)
    return torch.cat([source.training_batch(step, range(4), 4).waveform[:, 0] for step in steps]).numpy()


def test_short_recordings_are_delayed_and_never_cut():
    clip = np.arange(1, 21)
    for most, expected in ((0, {0}), (3, set(range(4))), (None, set(range(LENGTH - 20 + 1))), (99, set(range(13)))):
        starts = set()
        for window in windows(make_source([clip], random_shift=most)):
            start = int(np.argmax(window > 0))
            assert np.array_equal(window[start : start + 20], clip)
            assert np.count_nonzero(window) == 20
            starts.add(start)
        assert starts == expected


def test_long_recordings_are_cut_near_their_start_or_anywhere():
    clip = np.arange(100)
    for most, expected in ((0, {0}), (3, set(range(4))), (None, set(range(100 - LENGTH + 1)))):
        found = windows(make_source([clip], random_shift=most), 800)
        assert all(np.array_equal(window, clip[int(window[0]) :][:LENGTH]) for window in found)
        assert {int(window[0]) for window in found} == expected


def test_chunks_start_near_their_position_in_the_recording():
    found = windows(make_source([np.arange(100)], items=[(0, 0), (0, 32), (0, 64)], random_shift=2))
    assert {int(window[0]) for window in found} == {0, 1, 2, 32, 33, 34, 64, 65, 66}


def test_gain_and_waveform_std():
    found = windows(make_source([np.ones(LENGTH)], gain_db=6.0, waveform_std=0.5), 400)[:, 0]
    decibels = 20 * np.log10(found * 0.5)
    assert abs(decibels).max() <= 6
    assert decibels.min() < -5.5
    assert decibels.max() > 5.5


def test_mel_is_computed_before_the_waveform_is_divided_by_its_std():
    source = make_source([np.full(LENGTH, 3.0)], mel=lambda waveform: waveform.mean(-1, keepdim=True), waveform_std=0.5)
    batch = source.training_batch(0, range(2), 2)
    assert batch.mel.flatten().tolist() == [3, 3]
    assert batch.waveform.unique().tolist() == [6]


def test_waveforms_of_a_whitening_vocoder_lose_the_envelope_of_their_mel():
    waveform = np.sin(np.arange(LENGTH)) + 0.1 * np.cos(2.5 * np.arange(LENGTH))
    mel = LogMel(sample_rate=1000, n_fft=16, hop=4, n_mels=4, f_max=500.0)
    envelope = MelEnvelope(mel)
    source = make_source([waveform], mel=mel, envelope=envelope, waveform_std=0.5)
    batch = source.training_batch(0, range(2), 2)
    original = torch.from_numpy(waveform).float().expand(2, 1, -1)
    torch.testing.assert_close(batch.mel, mel(original))
    torch.testing.assert_close(batch.waveform, envelope.whiten(original, mel(original)) / 0.5)


def test_measured_std_is_taken_after_whitening():
    noise = 0.01 * np.random.default_rng(0).standard_normal(8192)
    model = {"mel_channels": 20, "mel_whitening": True}
    config = from_tree(DiffusionConfig, {"data": {"length": 4096, "sample_rate": 22050}, "model": model})
    assert measure_std(make_source([noise]).dataset, config) == pytest.approx(1.1, abs=0.15)


def test_measured_std_is_the_rms_of_windows():
    source = make_source([np.full(LENGTH, 3.0), np.full(LENGTH // 2, 4.0)])
    config = from_tree(DiffusionConfig, {"data": {"length": LENGTH}})
    assert measure_std(source.dataset, config) == pytest.approx(np.sqrt((9 + 8) / 2))


def test_measured_std_is_taken_after_pre_emphasis():
    source = make_source([np.full(LENGTH, 3.0)])
    config = from_tree(DiffusionConfig, {"data": {"length": LENGTH}, "model": {"pre_emphasis": 0.9}})
    # The first sample has nothing before it.
    assert measure_std(source.dataset, config) == pytest.approx(np.sqrt((9 + (LENGTH - 1) * 0.3**2) / LENGTH), rel=1e-5)
