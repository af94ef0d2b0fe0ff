"""Tests of the preparation of held-out recordings: rate, level and length of the training data."""

import json

import numpy as np
import pytest
import soundfile

from sashimi_diffusion.data import AudioFolder
from sashimi_diffusion.errors import UserError
from sashimi_evaluation.clips import open_clips
from sashimi_evaluation.preparation import Preparation, chosen_preparation, fit_length, recorded_preparation


def test_clips_are_cut_or_padded_on_the_right():
    assert fit_length(np.arange(1.0, 6.0), 3).tolist() == [1, 2, 3]
    assert fit_length(np.arange(1.0, 3.0), 4).tolist() == [1, 2, 0, 0]


@pytest.mark.parametrize("length", [2000, 6000])
def test_recordings_are_prepared_as_for_training(tmp_path, length):
    (tmp_path / "clips").mkdir()
    time = np.arange(8000) / 16000
    waveform = (0.5 * np.sin(2 * np.pi * 300 * time) * np.hanning(8000)).astype(np.float32)
    for name in ("0.wav", "1.wav"):
        soundfile.write(tmp_path / "clips" / name, waveform, 16000, subtype="FLOAT")
    dataset = AudioFolder(
        tmp_path / "clips",
        sample_rate=8000,
        length=length,
        pattern="{index}",
        holdout={"index": ["1"]},
        normalize_rms=0.04,
        cache_dir=tmp_path / "cache",
    )
    prepared, rate = Preparation(8000, length, 0.04).prepare(waveform, 16000, 10.0)
    assert rate == 8000
    assert prepared.dtype == np.float32
    np.testing.assert_allclose(prepared, dataset[0]["waveform"][0].numpy(), atol=1e-6)


def test_what_is_not_named_stays():
    waveform = np.ones(100, dtype=np.float32)
    prepared, rate = Preparation().prepare(waveform, 8000, 10.0)
    assert prepared is waveform
    assert rate == 8000
    assert Preparation(rms=0.1).prepare(np.zeros(5, dtype=np.float32), 8000, 1.0)[0].tolist() == [0] * 5
    assert len(Preparation(8000, 2**31).prepare(waveform, 8000, 10.0)[0]) == 80000


def test_the_record_of_generated_clips_names_the_preparation(tmp_path):
    (tmp_path / "runs" / "pipeline").mkdir(parents=True)
    (tmp_path / "runs" / "pipeline" / "README.md").write_text("## Settings\n\ndata:\n  normalize_rms: 0.05\n")
    record = {
        "sample_rate": 8000,
        "samples_per_clip": 5120,
        "pipeline": {"name": str(tmp_path / "runs" / "pipeline")},
        "samples": [{"file": "a.wav"}],
    }
    soundfile.write(tmp_path / "a.wav", np.ones(10), 8000)
    (tmp_path / "samples.json").write_text(json.dumps(record))
    assert open_clips(tmp_path).recorded == Preparation(8000, 5120, 0.05)
    (tmp_path / "runs" / "pipeline" / "README.md").write_text("  normalize_rms: null\n")
    assert open_clips(tmp_path).recorded == Preparation(8000, 5120)
    (tmp_path / "samples.json").unlink()
    assert open_clips(tmp_path).recorded == Preparation()


def test_the_bundled_pipeline_names_its_level(tmp_path):
    record = {"sample_rate": 8000, "samples_per_clip": 5120, "pipeline": {"name": "sashimi-digits"}}
    assert recorded_preparation(record, tmp_path) == Preparation(8000, 5120, 0.04)
    for pipeline in ({"name": "somebody/else"}, {"name": None}, "text", None):
        assert recorded_preparation(record | {"pipeline": pipeline}, tmp_path).rms is None


@pytest.mark.parametrize(
    "wrong", [{"sample_rate": "8000"}, {"sample_rate": 1e99}, {"samples_per_clip": 0}, {"samples_per_clip": True}]
)
def test_impossible_records_are_named(tmp_path, wrong):
    with pytest.raises(UserError, match=rf"samples\.json: {next(iter(wrong))} is .*, expected a whole number"):
        recorded_preparation(wrong, tmp_path / "samples.json")


ONE = {"ours": Preparation(8000, 5120, 0.04)}
TWO = {**ONE, "theirs": Preparation(8000, 16000)}


@pytest.mark.parametrize(
    ("option", "recorded", "expected"),
    [
        (None, {}, Preparation()),
        (None, ONE, ONE["ours"]),
        ("none", ONE, Preparation()),
        ("rms=0.1", ONE, Preparation(8000, 5120, 0.1)),
        ("rate=16000,length=16000", ONE, Preparation(16000, 16000, 0.04)),
        ("rms=0.1", {}, Preparation(rms=0.1)),
        (None, TWO, Preparation(8000, None, 0.04)),
        ("length=5120", TWO, Preparation(8000, 5120, 0.04)),
        (None, {"a": Preparation(8000, 100), "b": Preparation(16000, 100)}, Preparation()),
    ],
)
def test_the_option_comes_before_the_records(option, recorded, expected):
    assert chosen_preparation(option, recorded)[0] == expected


def test_the_note_says_what_was_done():
    assert chosen_preparation(None, ONE)[1] == (
        "prepared like the training data of the generated clips: resampled to 8000 Hz, scaled to a root mean square "
        "of 0.04, cut or padded to 5120 samples"
    )
    assert chosen_preparation(None, {})[1] == chosen_preparation("none", ONE)[1] == ""
    assert "the generated clips differ in length" in chosen_preparation(None, TWO)[1]
    assert "give --prepare rms=LEVEL" in chosen_preparation(None, {"ours": Preparation(8000, 5120)})[1]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("", "expected none, or some of rate=HZ"),
        ("8000", "expected none, or some of rate=HZ"),
        ("speed=2", "expected none, or some of rate=HZ"),
        ("rate=fast", "expected none, or some of rate=HZ"),
        ("rate=8000,rate=8000", "rate must be one number from 100"),
        ("rate=1", "rate must be one number from 100"),
        ("length=0,rate=8000", "length must be one number from 1"),
        ("rms=nan", "rms must be one number from 1e-09 to 1000"),
        ("length=5120", "a length in samples but no rate"),
    ],
)
def test_wrong_options(option, message):
    with pytest.raises(UserError, match=message):
        chosen_preparation(option, {})
