"""Tests of reading folders of clips with their labels and likelihoods."""

import json
import os

import numpy as np
import pytest
import soundfile

from sashimi_diffusion.data.speech_commands import DIGITS
from sashimi_diffusion.errors import UserError
from sashimi_evaluation.clips import class_index, open_clips, open_sets, split_held_out


def write_clips(root, names):
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.sin(np.arange(800) * (0.1 + 0.01 * number)) * 0.5, 8000)
    return root


def names_of(clips):
    return [file.relative_to(clips.root).as_posix() for file in clips.files]


def test_digits_are_read_as_words_and_numerals():
    texts = ("seven", "Seven ", "7", "0", "10", "happy", "")
    assert [class_index(text, DIGITS) for text in texts] == [7, 7, 7, 0, -1, -1, -1]
    assert [class_index(text, ["up", "Left", "one"]) for text in ("left", "1", "UP", "down")] == [1, 2, 0, -1]


def test_labels_from_folders(tmp_path):
    clips = open_clips(write_clips(tmp_path, ["seven/a.wav", "3/b.wav"]))
    assert names_of(clips) == ["3/b.wav", "seven/a.wav"]
    assert clips.labels.tolist() == [3, 7]
    assert clips.labeled


def test_labels_from_a_pattern(tmp_path):
    clips = open_clips(write_clips(tmp_path, ["7_theo_1.wav", "2_lucas_0.wav"]), pattern="{label}_{speaker}_{index}")
    assert clips.labels.tolist() == [2, 7]


def test_labels_and_likelihoods_from_the_record_of_sashimi_sample(tmp_path):
    write_clips(tmp_path, ["0000-seven.wav", "0001-three.wav"])
    samples = [
        {"file": "0000-seven.wav", "label": 7, "class_name": "seven", "log_likelihood": -5.0, "bits_per_sample": 2.0},
        {"file": "0001-three.wav", "label": 3, "class_name": None, "log_likelihood": -3.0, "bits_per_sample": 1.0},
        {"file": None, "label": 1, "class_name": "one", "log_likelihood": -9.0, "bits_per_sample": 4.0},
    ]
    (tmp_path / "samples.json").write_text(json.dumps({"samples": samples}))
    clips = open_clips(tmp_path)
    assert clips.labels.tolist() == [7, 3]
    assert clips.log_likelihoods.tolist() == [-5.0, -3.0]
    assert clips.bits_per_sample.tolist() == [2.0, 1.0]


def test_a_pattern_applies_only_to_files_missing_from_the_record(tmp_path):
    """All sets share one --sample-pattern, including sets that sashimi-sample wrote."""
    write_clips(tmp_path, ["0000-seven.wav", "3_theo.wav", "other.wav"])
    named = [{"file": "0000-seven.wav", "label": 7, "class_name": "seven"}]
    (tmp_path / "samples.json").write_text(json.dumps({"samples": named}))
    with pytest.raises(UserError, match=r"1 of 3 audio files .*other\.wav: its name is not of the form"):
        open_clips(tmp_path, pattern="{label}_{speaker}")
    (tmp_path / "other.wav").unlink()
    clips = open_clips(tmp_path, pattern="{label}_{speaker}")
    assert [file.name for file in clips.files] == ["0000-seven.wav", "3_theo.wav"]
    assert clips.labels.tolist() == [7, 3]


def test_class_names_take_precedence_over_class_numbers(tmp_path):
    write_clips(tmp_path, ["a.wav"])
    record = {"samples": [{"file": "a.wav", "label": 0, "class_name": "nine"}]}
    (tmp_path / "samples.json").write_text(json.dumps(record))
    assert open_clips(tmp_path).labels.tolist() == [9]


def test_one_unknown_label_makes_the_set_unlabeled(tmp_path):
    clips = open_clips(write_clips(tmp_path, ["seven/a.wav", "b.wav"]))
    assert not clips.labeled
    assert clips.labels.tolist() == [-1, -1]
    assert np.isnan(clips.log_likelihoods).all()


@pytest.mark.parametrize("text", ["{", "[]", '{"samples": [{"label": 1}]}', '{"samples": 3}'])
def test_a_damaged_record_is_named(tmp_path, text):
    write_clips(tmp_path, ["a.wav"])
    (tmp_path / "samples.json").write_text(text)
    with pytest.raises(UserError, match=r"samples\.json (was not written by sashimi-sample|is not JSON)"):
        open_clips(tmp_path)


@pytest.mark.parametrize("value", ['"much"', "[1]", "true", "1" + 400 * "0"])
def test_a_likelihood_that_is_no_number_is_named(tmp_path, value):
    write_clips(tmp_path, ["a.wav"])
    (tmp_path / "samples.json").write_text(f'{{"samples": [{{"file": "a.wav", "log_likelihood": {value}}}]}}')
    with pytest.raises(UserError, match=r"samples\.json: log_likelihood of a\.wav is .*, expected a number"):
        open_clips(tmp_path)


def test_a_record_that_is_no_regular_file_is_refused(tmp_path):
    write_clips(tmp_path, ["a.wav"])
    os.mkfifo(tmp_path / "samples.json")
    with pytest.raises(UserError, match=r"samples\.json is a FIFO"):
        open_clips(tmp_path)


def test_a_class_that_is_no_digit_is_not_replaced_by_its_number(tmp_path):
    """A pipeline numbers its classes from 0 on, whatever their names are."""
    write_clips(tmp_path, ["seven/a.wav", "b.wav"])
    record = [{"file": "seven/a.wav", "label": 0, "class_name": "happy"}, {"file": "b.wav", "label": 1}]
    (tmp_path / "samples.json").write_text(json.dumps({"samples": record}))
    clips = open_clips(tmp_path)
    assert not clips.labeled
    assert clips.notes == ("no label metrics, because clips have no digit as their label: 1 of 2 (seven/a.wav)",)
    record[0]["class_name"] = "Nine"
    (tmp_path / "samples.json").write_text(json.dumps({"samples": record}))
    clips = open_clips(tmp_path)
    assert clips.labels.tolist() == [1, 9]
    assert clips.notes == ()


def test_differences_of_folder_and_record_are_noted(tmp_path):
    write_clips(tmp_path, ["0.wav", "1.wav", "new\x1b.wav"])
    record = [{"file": name, "label": 3} for name in ("0.wav", "1.wav", "2.wav", "3.wav", "4.wav", "5.wav")]
    (tmp_path / "samples.json").write_text(json.dumps({"samples": record}))
    missing, unnamed, unlabeled = open_clips(tmp_path).notes
    assert missing == "samples.json names clips that are missing: 4 of 6 (2.wav, 3.wav, 4.wav, ...)"
    assert unnamed == r"clips are not in samples.json: 1 of 3 (new\x1b.wav)"
    assert unlabeled == r"no label metrics, because clips have no digit as their label: 1 of 3 (new\x1b.wav)"


def test_the_record_of_an_interrupted_run_is_noted(tmp_path):
    write_clips(tmp_path, ["0.wav"])
    record = {"complete": False, "samples": [{"file": "0.wav", "label": 3}]}
    (tmp_path / "samples.json").write_text(json.dumps(record))
    assert open_clips(tmp_path).notes == ("samples.json belongs to a run of sashimi-sample that did not finish",)
    (tmp_path / "samples.json").write_text(json.dumps({**record, "complete": True}))
    assert open_clips(tmp_path).notes == ()


def test_a_pattern_without_a_label_is_noted(tmp_path):
    write_clips(tmp_path, ["7_theo.wav"])
    assert open_clips(tmp_path).notes == ()
    (note,) = open_clips(tmp_path, pattern="{digit}_{speaker}").notes
    assert note == "no label metrics, because the pattern {digit}_{speaker} has no field {label}"
    assert open_clips(tmp_path, pattern="{label}_{speaker}").notes == ()


@pytest.mark.parametrize("text", ["", "ours="])
def test_a_set_without_a_folder_is_refused(text):
    with pytest.raises(UserError, match="names no folder: expected DIR or NAME=DIR"):
        open_sets([text])


def test_hold_out_splits_a_folder(tmp_path):
    names = [f"{digit}_{speaker}_{i}.wav" for digit in (1, 2) for speaker in ("jackson", "theo") for i in range(3)]
    write_clips(tmp_path, names)
    pattern = "{label}_{speaker}_{index}"
    reference, held_out = split_held_out(
        tmp_path, pattern, {"speaker": ["theo"]}, {"index": ["0"]}, skip_bad_files=False
    )
    assert names_of(held_out) == ["1_theo_0.wav", "2_theo_0.wav"]
    assert names_of(reference) == ["1_theo_1.wav", "1_theo_2.wav", "2_theo_1.wav", "2_theo_2.wav"]
    assert reference.labels.tolist() == [1, 1, 2, 2]


def test_the_split_lists_of_speech_commands_are_a_field(tmp_path):
    write_clips(tmp_path, ["one/a_nohash_0.wav", "one/b_nohash_0.wav", "two/c_nohash_0.wav"])
    (tmp_path / "validation_list.txt").write_text("one/b_nohash_0.wav\n")
    (tmp_path / "testing_list.txt").write_text("")
    reference, held_out = split_held_out(tmp_path, None, None, {"split": ["validation"]}, skip_bad_files=False)
    assert names_of(held_out) == ["one/b_nohash_0.wav"]
    assert names_of(reference) == ["one/a_nohash_0.wav", "two/c_nohash_0.wav"]


def test_invalid_requests_are_refused(tmp_path):
    with pytest.raises(UserError, match="no audio in"):
        open_clips(tmp_path)
    write_clips(tmp_path, ["1_theo_0.wav"])
    with pytest.raises(UserError, match="does not exist"):
        open_clips(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"not of the form \{label\}-\{take\}"):
        open_clips(tmp_path, pattern="{label}-{take}")
    with pytest.raises(UserError, match="did you mean 'speaker'"):
        open_clips(tmp_path, pattern="{label}_{speaker}_{index}", where={"speakers": ["theo"]})
    with pytest.raises(UserError, match="matches all of the 1 clips"):
        split_held_out(tmp_path, "{label}_{speaker}_{index}", None, {"index": ["0"]}, skip_bad_files=False)


def test_labels_number_any_classes_by_name(tmp_path):
    """The record's class counts; a folder is a class only if its name is one."""
    clips = open_clips(write_clips(tmp_path, ["a.wav", "left/b.wav", "one/c.wav"]))
    assert clips.labels.tolist() == [-1, -1, -1]
    record = [
        {"file": "a.wav", "label": 0, "class_name": "up"},
        {"file": "left/b.wav", "label": 0, "class_name": "one"},
    ]
    (tmp_path / "samples.json").write_text(json.dumps({"samples": record}))
    clips = open_clips(tmp_path).labeled_by(["left", "up", "one"])
    assert clips.labels.tolist() == [1, 2, 2]
    assert clips.notes == ("clips are not in samples.json: 1 of 3 (one/c.wav)",)
    assert clips.select([2, 0]).labeled_by(["one", "up"]).labels.tolist() == [0, 1]
    other = clips.labeled_by(["left", "one"])
    assert not other.labeled
    assert other.notes[1:] == (
        "no label metrics, because clips have no class of the classifier (left, one) as their label: 1 of 3 (a.wav)",
    )
    assert other.labeled_by(DIGITS).notes[1].startswith("no label metrics, because clips have no digit as their label")
