"""Tests of AudioFolder: chunks, labels, speakers, splits and bad files."""

import os
import re
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from sashimi_diffusion.data import cache as cache_module
from sashimi_diffusion.data import partition
from sashimi_diffusion.data.audio_folder import SUB_FOLDERS, AudioFolder
from sashimi_diffusion.data.recordings import report_bad_files
from sashimi_diffusion.errors import UserError

PATTERN = "{label}_{speaker}_{index}"


@pytest.fixture
def words(tmp_path: Path, record) -> Path:
    """Write two words by two speakers, ten times each, with names of the form PATTERN."""
    for word in ("ja", "no"):
        for speaker in ("ann", "bob"):
            for index in range(10):
                record(tmp_path / "words" / f"{word}_{speaker}_{index}.wav", 60)
    return tmp_path / "words"


def test_long_recordings_are_cut_into_consecutive_chunks(tmp_path: Path, record):
    noise = record(tmp_path / "audio" / "long.wav", 1050)
    dataset = AudioFolder(tmp_path / "audio", "all", length=250)
    assert len(dataset) == 4  # the last 50 samples are dropped
    for number, item in enumerate(dataset):
        assert item["waveform"].shape == (1, 250)
        assert item["waveform"].dtype == torch.float32
        assert item["label"] == -1
        np.testing.assert_array_equal(item["waveform"][0], noise[250 * number : 250 * (number + 1)])
        np.testing.assert_array_equal(dataset.clip(number), noise)
        assert dataset.clip_length(number) == 1050
    assert dataset.class_names is None


@pytest.mark.parametrize(("samples", "items"), [(1, 1), (99, 1), (100, 1), (101, 1), (199, 1), (200, 2)])
def test_only_recordings_shorter_than_a_chunk_are_padded(tmp_path: Path, record, samples: int, items: int):
    noise = record(tmp_path / "audio" / "a.flac", samples)
    dataset = AudioFolder(tmp_path / "audio", "all", length=100)
    assert len(dataset) == items
    first = dataset[0]["waveform"][0].numpy()
    np.testing.assert_array_equal(first[:samples], noise[:100])
    assert not first[samples:].any()


def test_whole_recordings_have_one_item_each(tmp_path: Path, record):
    noise = record(tmp_path / "audio" / "long.wav", 1050)
    record(tmp_path / "audio" / "short.wav", 20)
    dataset = AudioFolder(tmp_path / "audio", "all", length=250, whole=True)
    assert len(dataset) == 2
    np.testing.assert_array_equal(dataset[0]["waveform"][0], noise[:250])
    assert dataset.clip_length(0) == 1050  # a random shift may still move the window


def test_sub_folders_are_searched(tmp_path: Path, record):
    for name in ("a.wav", "b/c.flac", "b/d/e.OGG", "f/g.mp3", ".hidden/h.wav", "b/._c.wav"):
        record(tmp_path / "audio" / name, 2000)
    (tmp_path / "audio" / "notes.txt").write_text("no audio")
    dataset = AudioFolder(tmp_path / "audio", "all", length=500)
    found = [path.relative_to(tmp_path / "audio").as_posix() for path in dataset.files]
    assert found == ["a.wav", "b/c.flac", "b/d/e.OGG", "f/g.mp3"]


@pytest.mark.usefixtures("needs_torchaudio")
def test_recordings_are_resampled_and_made_mono(tmp_path: Path, record):
    record(tmp_path / "audio" / "a.wav", 4410, rate=44100, channels=2)
    dataset = AudioFolder(tmp_path / "audio", "all", sample_rate=16000, length=800)
    assert dataset.clip(0).shape == (1600,)
    assert len(dataset) == 2
    assert dataset.sample_rate == 16000


def test_resampling_without_torchaudio_is_refused(without_torchaudio, tmp_path: Path, record, cache_dir: Path):
    record(tmp_path / "audio" / "a.wav", 4410, rate=44100)
    with pytest.raises(UserError, match="resampling from 44100 Hz to 16000 Hz needs torchaudio"):
        AudioFolder(tmp_path / "audio", "all", skip_bad_files=True)
    assert not [path for path in cache_dir.iterdir() if path.is_dir()]


def test_labels_from_the_pattern(words: Path):
    dataset = AudioFolder(words, "all", length=60, pattern=PATTERN)
    assert dataset.class_names == ["ja", "no"]
    assert len(dataset) == 40
    for path, item in zip(dataset.files, dataset, strict=True):
        assert dataset.class_names[item["label"]] == path.name.split("_")[0]


def test_labels_from_another_field(words: Path):
    assert AudioFolder(words, "all", length=60, pattern=PATTERN, labels="speaker").class_names == ["ann", "bob"]


def test_speakers_are_optional(words: Path):
    dataset = AudioFolder(words, "all", length=60, pattern=PATTERN, speakers="speaker")
    assert (dataset.class_names, dataset.speaker_names) == (["ja", "no"], ["ann", "bob"])
    for index, (path, item) in enumerate(zip(dataset.files, dataset, strict=True)):
        names = dataset.class_names[item["label"]], dataset.speaker_names[item["speaker"]]
        assert names == tuple(path.name.split("_")[:2])
        assert dataset.speakers[index] == item["speaker"]
    batch = next(iter(DataLoader(dataset, batch_size=40)))
    assert batch["speaker"].tolist() == dataset.speakers.tolist()
    plain = AudioFolder(words, "all", length=60, pattern=PATTERN)
    assert "speaker" not in plain[0]
    assert (plain.speakers, plain.speaker_names) == (None, None)


def test_speaker_names_do_not_depend_on_the_split(words: Path):
    options = dict(length=60, pattern=PATTERN, speakers="speaker", holdout={"speaker": ["bob"]})
    train, validation = (AudioFolder(words, split, **options) for split in ("train", "validation"))
    assert train.speaker_names == validation.speaker_names == ["ann", "bob"]
    assert (set(train.speakers), set(validation.speakers)) == ({0}, {1})


def test_every_chunk_has_the_speaker_of_its_recording(tmp_path: Path, record):
    for name in ("10/a.wav", "9/b.wav"):
        record(tmp_path / "audio" / name, 250)
    dataset = AudioFolder(tmp_path / "audio", "all", length=100, speakers="folder")
    assert dataset.speaker_names == ["9", "10"]
    assert dataset.speakers.tolist() == [1, 1, 0, 0]
    assert dataset.labels.tolist() == [-1] * 4
    record(tmp_path / "audio" / "stray.wav")
    with pytest.raises(UserError, match=r"stray\.wav: in no sub-folder, so it has no speaker;"):
        AudioFolder(tmp_path / "audio", "all", length=100, speakers="folder")


def test_labels_from_sub_folders(tmp_path: Path, record):
    for name in ("10/a.wav", "9/deep/b.wav", "9/c.wav"):
        record(tmp_path / "audio" / name)
    dataset = AudioFolder(tmp_path / "audio", "all", length=100, labels="folder")
    assert dataset.class_names == ["9", "10"]
    assert dataset.labels.tolist() == [1, 0, 0]
    record(tmp_path / "audio" / "stray.wav")
    with pytest.raises(UserError, match=r"stray\.wav: in no sub-folder"):
        AudioFolder(tmp_path / "audio", "all", length=100, labels="folder")


def test_sub_folders_are_labels_if_there_are_at_least_two(tmp_path: Path, record):
    record(tmp_path / "audio" / "birds" / "1.wav")
    options = {"split": "all", "length": 100, "labels": SUB_FOLDERS}
    assert AudioFolder(tmp_path / "audio", **options).class_names is None
    record(tmp_path / "audio" / "frogs" / "deep" / "1.wav")
    dataset = AudioFolder(tmp_path / "audio", **options)
    assert (dataset.class_names, dataset.labels.tolist()) == (["birds", "frogs"], [0, 1])
    assert AudioFolder(tmp_path / "audio", **options | {"pattern": "{label}"}).class_names == ["1"]
    assert AudioFolder(tmp_path / "audio", **options | {"pattern": "{take}"}).class_names is None
    record(tmp_path / "audio" / "loose.wav")
    with pytest.raises(UserError, match=r"1 of 3 .* loose\.wav: in no sub-folder, so it has no label"):
        AudioFolder(tmp_path / "audio", **options)


def test_where_selects_recordings(words: Path):
    dataset = AudioFolder(words, "all", length=60, pattern=PATTERN, where={"speaker": ["bob"], "label": "ja"})
    assert {path.name for path in dataset.files} == {f"ja_bob_{index}.wav" for index in range(10)}
    assert dataset.class_names == ["ja"]


def test_holdout_makes_the_validation_split(words: Path):
    options = dict(length=60, pattern=PATTERN, holdout={"index": [0, 1]})
    validation = AudioFolder(words, "validation", **options)
    train = AudioFolder(words, "train", **options)
    assert {path.stem.split("_")[2] for path in validation.files} == {"0", "1"}
    assert (len(train), len(validation)) == (32, 8)
    with pytest.raises(UserError, match=r"the test split .* is empty: holdout divides .* data.test=false"):
        AudioFolder(words, "test", **options)


def test_a_holdout_of_all_or_no_files_is_an_error(words: Path):
    options = dict(length=60, pattern=PATTERN)
    with pytest.raises(UserError, match=r"the train split .* is empty: holdout matches all of its 4 files"):
        AudioFolder(words, "train", where={"index": 0}, holdout={"index": 0}, **options)
    for word in ("ja", "no"):
        (words / f"{word}_ann_0.wav").unlink()
    with pytest.raises(UserError, match=r"the validation split .* is empty: holdout matches none of its 38 files"):
        AudioFolder(words, "validation", holdout={"index": 0, "speaker": "ann"}, **options)


def test_splits_are_disjoint_complete_stratified_and_repeatable(words: Path):
    def split_files(**options) -> dict[str, list[Path]]:
        return {s: AudioFolder(words, s, length=20, pattern=PATTERN, **options).files for s in partition.SPLITS}

    parts = split_files()
    assert {split: len(files) for split, files in parts.items()} == dict(train=36, validation=2, test=2, all=40)
    assert sorted(parts["train"] + parts["validation"] + parts["test"]) == parts["all"]
    for split in ("validation", "test"):
        assert Counter(path.name.split("_")[0] for path in parts[split]) == {"ja": 1, "no": 1}
    assert split_files() == parts
    assert split_files(seed=1) != parts
    assert len(split_files(splits=(0.5, 0.3, 0.2))["validation"]) == 12


def test_class_names_do_not_depend_on_the_split(tmp_path: Path, record):
    for name in ("a/1.wav", "b/1.wav", "b/2.wav", "b/3.wav"):
        record(tmp_path / "audio" / name)
    for split in ("train", "validation", "test"):
        dataset = AudioFolder(tmp_path / "audio", split, length=100, labels="folder")
        assert dataset.class_names == ["a", "b"]
    assert dataset.labels.tolist() == [1]


def test_adding_a_file_hardly_changes_the_split_of_others(tmp_path: Path, record):
    for index in range(40):
        record(tmp_path / "audio" / f"{index}.wav")
    before = set(AudioFolder(tmp_path / "audio", "train", length=100, splits=(0.5, 0.5, 0)).files)
    record(tmp_path / "audio" / "new.wav")
    after = set(AudioFolder(tmp_path / "audio", "train", length=100, splits=(0.5, 0.5, 0)).files)
    assert len(before - after) <= 1


@given(
    files=st.integers(1, 2000),
    ratios=st.tuples(*[st.floats(0, 1)] * 3).filter(lambda r: sum(r) > 0.1),
)
def test_sizes_of_the_splits_follow_the_ratios(files: int, ratios: tuple[float, float, float]):
    splits = tuple(ratio / sum(ratios) for ratio in ratios)
    validation, test = partition.held_out_counts(files, splits)
    train = files - validation - test
    assert min(train, validation, test) >= 0
    for ratio, count in zip(splits, (train, validation, test), strict=True):
        if ratio > 0 and files >= 3:
            assert count >= 1
    assert splits[1] > 0 or validation == 0
    assert splits[2] > 0 or test == 0
    if files >= 100:
        assert abs(validation - splits[1] * files) <= 2
        assert abs(test - splits[2] * files) <= 2


def test_recordings_are_scaled_to_the_given_rms(words: Path):
    dataset = AudioFolder(words, "all", length=60, normalize_rms=0.1)
    for index in (0, 7):
        assert np.sqrt(np.mean(dataset.clip(index).astype(np.float64) ** 2)) == pytest.approx(0.1, rel=1e-5)
        np.testing.assert_array_equal(dataset[index]["waveform"][0], dataset.clip(index))
    assert dataset.rms() == pytest.approx(0.1, rel=1e-5)


def test_silence_stays_silence_when_scaled(tmp_path: Path):
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio" / "silence.wav", np.zeros(50), 16000)
    dataset = AudioFolder(tmp_path / "audio", "all", length=50, normalize_rms=0.1)
    assert not dataset[0]["waveform"].any()


def test_rms_includes_the_padding(tmp_path: Path):
    (tmp_path / "audio").mkdir()
    soundfile.write(tmp_path / "audio" / "a.wav", np.full(50, 0.5), 16000)
    assert AudioFolder(tmp_path / "audio", "all", length=200).rms() == pytest.approx(0.25)


def test_recordings_are_decoded_only_once(words: Path, monkeypatch: pytest.MonkeyPatch):
    for split in ("train", "validation"):
        AudioFolder(words, split, length=60, pattern=PATTERN)
        monkeypatch.setattr(cache_module, "decode_audio", None)
    dataset = AudioFolder(words, "train", length=60, pattern=PATTERN)
    for _ in range(2):
        assert len([item for item in dataset]) == 36


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_worker_processes(words: Path, context: str):
    dataset = AudioFolder(words, "all", length=60, pattern=PATTERN)
    loader = DataLoader(dataset, batch_size=20, num_workers=1, multiprocessing_context=context)
    batches = list(loader)
    assert [batch["waveform"].shape for batch in batches] == [(20, 1, 60)] * 2
    torch.testing.assert_close(batches[1]["waveform"][3], dataset[23]["waveform"])
    assert batches[1]["label"][3] == dataset[23]["label"]


def test_all_bad_files_are_listed_in_one_message(words: Path):
    (words / "ja_ann_0.wav").write_text("text")
    (words / "ja_ann_1.wav").write_bytes(b"")
    (words / "no_ann_9.wav").rename(words / "unnamed.wav")
    with pytest.raises(UserError) as caught:
        AudioFolder(words, "train", length=60, pattern=PATTERN)
    message = str(caught.value)
    assert message.startswith(f"3 of 40 audio files in {words} cannot be used:\n")
    assert "\n  ja_ann_0.wav: not audio that soundfile can read" in message
    assert "\n  ja_ann_1.wav: empty (0 bytes)" in message
    assert "\n  unnamed.wav: its name is not of the form {label}_{speaker}_{index}" in message
    with pytest.warns(UserWarning, match="cannot be used") as warned:
        dataset = AudioFolder(words, "all", length=60, pattern=PATTERN, skip_bad_files=True)
    assert message.splitlines()[1:4] == str(warned[0].message).splitlines()[1:4]
    assert len(dataset) == 37
    assert all(item["waveform"].any() for item in dataset)


def test_one_bad_file_is_reported_in_one_line(words: Path):
    (words / "ja_ann_0.wav").write_text("text")
    with pytest.raises(UserError) as caught:
        AudioFolder(words, "train", length=60)
    assert "\n" not in str(caught.value)
    assert "ja_ann_0.wav: not audio" in str(caught.value)


def test_a_long_list_is_cut_with_a_count_and_written_to_a_file(tmp_path: Path, record, cache_dir: Path):
    record(tmp_path / "audio" / "good.wav")
    for index in range(33):
        (tmp_path / "audio" / f"bad{index:02}.wav").write_text("text")
    with pytest.raises(UserError, match="and 13 more") as caught:
        AudioFolder(tmp_path / "audio", length=100)
    assert str(caught.value).startswith("33 of 34")
    assert str(caught.value).count(": not audio") == 20
    listed = Path(re.search("all are listed in (.*);", str(caught.value))[1])
    assert listed.is_relative_to(cache_dir)
    lines = listed.read_text().splitlines()
    assert [line.partition(":")[0] for line in lines] == [f"bad{index:02}.wav" for index in range(33)]
    assert all(": not audio that soundfile can read" in line for line in lines)


def test_the_list_is_written_to_a_temporary_folder_if_the_cache_is_a_file(tmp_path: Path, monkeypatch):
    (tmp_path / "file").write_text("text")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    bad = {tmp_path / f"{index}.wav": "empty" for index in range(30)}
    with pytest.warns(UserWarning, match="all are listed in") as warned:
        report_bad_files(bad, 40, tmp_path, skip_bad_files=True, cache_dir=tmp_path / "file")
    listed = Path(re.search("all are listed in (.*);", str(warned[0].message))[1])
    assert listed.parent == tmp_path
    assert len(listed.read_text().splitlines()) == 30


@pytest.mark.skipif(os.name != "posix", reason="special files of POSIX systems")
def test_what_is_no_regular_file_is_a_bad_file(words: Path):
    os.mkfifo(words / "ja_ann_90.wav")
    (words / "ja_ann_91.wav").symlink_to(words / "ja_ann_91.wav")
    with pytest.raises(UserError, match="2 of 42 audio files") as caught:
        AudioFolder(words, "all", length=60, pattern=PATTERN)
    assert "ja_ann_90.wav: a FIFO, not a regular file" in str(caught.value)
    assert "ja_ann_91.wav: unreadable (Too many levels of symbolic links)" in str(caught.value)
    with pytest.warns(UserWarning, match="2 of 42"):
        assert len(AudioFolder(words, "all", length=60, pattern=PATTERN, skip_bad_files=True)) == 40


@pytest.mark.parametrize("scale", [1e38, 1e19, 1e-40])
def test_impossible_levels_are_bad_files(words: Path, scale: float):
    soundfile.write(words / "ja_ann_0.wav", scale * np.sin(np.arange(60)), 16000, subtype="FLOAT")
    with pytest.raises(UserError, match=r"1 of 40 .*ja_ann_0\.wav: (samples up to|no sample above)"):
        AudioFolder(words, "all", length=60, normalize_rms=0.1)


def test_unusual_levels_are_used_with_a_warning_also_from_the_cache(words: Path):
    loud = np.round(2000 * np.sin(np.arange(60)))
    soundfile.write(words / "ja_ann_0.wav", loud, 16000, subtype="FLOAT")
    soundfile.write(words / "ja_ann_1.wav", np.zeros(60), 16000)
    for _ in range(2):
        with pytest.warns(UserWarning, match="2 of 40 audio files .* are unusual") as warned:
            dataset = AudioFolder(words, "all", length=60)
        message = str(warned[0].message)
        assert "ja_ann_0.wav: samples up to 2000, but full scale is 1: 16-bit integers" in message
        assert "ja_ann_1.wav: silent" in message
    index = [file.name for file in dataset.files].index("ja_ann_0.wav")
    np.testing.assert_array_equal(dataset.clip(index), loud)


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX systems only")
def test_names_that_are_not_utf8_and_labels_with_unusual_digits(tmp_path: Path, record):
    root = os.fsencode(tmp_path) + b"/gro\xdfes"
    os.mkdir(root)
    for label in (b"2", b"10", "²".encode(), b"caf\xe9"):
        for take in range(4):
            record(tmp_path / "noise.wav", 60)
            os.rename(tmp_path / "noise.wav", root + b"/" + label + b"_%d.wav" % take)
    options = {"length": 60, "splits": (0.5, 0.25, 0.25)}
    assert len(AudioFolder(os.fsdecode(root), "train", pattern="{word}_{take}", **options)) == 8
    with pytest.warns(UserWarning, match=r"caf\\udce9_0.wav: its label is not valid text"):  # no file can have it
        dataset = AudioFolder(os.fsdecode(root), "train", pattern="{label}_{take}", skip_bad_files=True, **options)
    assert dataset.class_names == ["2", "10", "²"]
    assert len(dataset) == 6
    by_name = AudioFolder(os.fsdecode(root), "all", length=60, pattern="{word}_{take}", order="name")
    assert len(by_name) == 16


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX systems only")
def test_escape_bytes_of_names_do_not_reach_the_message(tmp_path: Path):
    root = tmp_path / "a\x1b[31m"
    root.mkdir()
    (root / "b\x1b]0;c\x07.wav").write_text("text")
    with pytest.raises(UserError) as caught:
        AudioFolder(root)
    assert str(caught.value).isprintable()
    assert r"b\x1b]0;c\x07.wav" in str(caught.value)


def test_skipping_every_file_is_an_error(tmp_path: Path):
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "a.wav").write_text("text")
    with pytest.raises(UserError, match=r"1 of 1 audio files .* no usable file is left"):
        AudioFolder(tmp_path / "audio", skip_bad_files=True)


def test_bad_files_that_are_not_selected_are_ignored(words: Path):
    (words / "ja_ann_0.wav").write_text("text")
    assert len(AudioFolder(words, "all", length=60, pattern=PATTERN, where={"speaker": "bob"})) == 20


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (dict(split="valid"), "unknown split 'valid': expected one of train, validation, test, all"),
        (dict(length=0), "length must be a whole number of at least 1, got 0"),
        (dict(length=0.5), "length must be a whole number"),
        (dict(sample_rate=-1), "sample_rate must be"),
        (dict(splits=(0.9, 0.2, 0.1)), "splits must be three ratios"),
        (dict(splits=(0.9, 0.1)), "splits must be three ratios"),
        (dict(normalize_rms=0), "normalize_rms must be above zero"),
        (dict(labels="label"), "labels names the field 'label', but the fields are folder"),
        (dict(pattern=PATTERN, speakers="speakr"), "speakers names the field 'speakr'.* did you mean 'speaker'"),
        (dict(speakers="speaker"), "speakers names the field 'speaker', but the fields are folder"),
        (dict(where={"speaker": "ann"}), "where names the field 'speaker'"),
        (dict(pattern=PATTERN, where={"speaker": "an"}), "did you mean 'ann'"),
        (dict(pattern=PATTERN, holdout={"index": 99}), "holdout asks for index '99'"),
        (dict(pattern="{label"), "file name pattern"),
    ],
)
def test_options_that_cannot_be_used(words: Path, options: dict, complaint: str):
    with pytest.raises(UserError, match=complaint):
        AudioFolder(words, **{"length": 60, **options})


def test_folders_that_cannot_be_used(tmp_path: Path, record):
    with pytest.raises(UserError, match=r"the data folder .*nowhere does not exist: expected a folder with recordings"):
        AudioFolder(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"no audio in .*empty: expected files ending in .wav"):
        AudioFolder(tmp_path / "empty")
    record(tmp_path / "one" / "a.wav")
    with pytest.raises(UserError, match="is not a folder"):
        AudioFolder(tmp_path / "one" / "a.wav")
    assert len(AudioFolder(tmp_path / "one", "train", length=100)) == 1
    with pytest.raises(UserError, match=r"the validation split .* is empty: it has 1 usable files"):
        AudioFolder(tmp_path / "one", "validation", length=100)


def test_spoken_digits(shared_data: Path):
    options = dict(sample_rate=8000, length=4000, pattern=PATTERN, where={"speaker": ["jackson", "nicolas"]})
    train = AudioFolder(shared_data / "fsdd", "train", holdout={"index": [0, 1, 2, 3, 4]}, **options)
    validation = AudioFolder(shared_data / "fsdd", "validation", holdout={"index": [0, 1, 2, 3, 4]}, **options)
    assert train.class_names == validation.class_names == [str(digit) for digit in range(10)]
    assert (len(train.files), len(validation.files)) == (900, 100)
    assert np.bincount(validation.labels).min() >= 10
    item = validation[0]
    assert item["waveform"].shape == (1, 4000)
    assert item["waveform"].abs().max() > 0.01


def test_piano_tracks(shared_data: Path):
    parts = {s: AudioFolder(shared_data / "piano", s, length=16000) for s in ("train", "validation", "test")}
    assert {split: len(dataset.files) for split, dataset in parts.items()} == dict(train=8, validation=1, test=1)
    assert 1195 <= sum(len(dataset) for dataset in parts.values()) <= 1205
    assert all(dataset[len(dataset) - 1]["waveform"].shape == (1, 16000) for dataset in parts.values())


@pytest.mark.parametrize(
    ("files", "expected"), [(10, (8, 1, 1)), (50, (44, 3, 3)), (241, (212, 14, 15)), (1, (1, 0, 0))]
)
def test_music_is_split_by_the_order_of_its_names(files: int, expected: tuple[int, int, int]):
    root = Path("music")
    paths = [root / f"track {number}.wav" for number in range(files)]
    parts = partition.by_name(paths[::-1], root, (0.88, 0.06, 0.06))
    assert tuple(Counter(parts.values())[split] for split in ("train", "validation", "test")) == expected
    assert [parts[path] for path in paths] == sorted(parts.values(), key=["train", "validation", "test"].index)


def test_unusual_files_are_counted_among_the_usable_ones(tmp_path: Path, cache_dir: Path) -> None:
    for index in range(3):
        soundfile.write(tmp_path / f"good{index}.wav", 0.1 * np.sin(np.arange(8000)), 8000)
    (tmp_path / "bad.wav").write_bytes(b"")
    soundfile.write(tmp_path / "silent.wav", np.zeros(8000), 8000)
    with pytest.warns(UserWarning, match="are unusual") as warned:
        AudioFolder(tmp_path, "all", 8000, 800, cache_dir=cache_dir, skip_bad_files=True)
    texts = [" ".join(str(one.message).split()) for one in warned]
    assert any("1 of 5 audio files" in text and "bad.wav: empty (0 bytes);" in text for text in texts)
    assert any("1 of 4 audio files" in text and "silent.wav" in text for text in texts)


@pytest.mark.parametrize("options", [{"labels": "folder"}, {"labels": SUB_FOLDERS}, {"speakers": "folder"}])
def test_names_that_are_no_text_are_no_labels(tmp_path: Path, record, options: dict):
    record(tmp_path / "audio" / "a" / "1.wav")
    record(tmp_path / "audio" / "b" / "2.wav")
    os.rename(tmp_path / "audio" / "b", os.fsencode(tmp_path / "audio") + b"/\xff")
    with pytest.raises(UserError, match=r"\\udcff/2.wav: its (label|speaker) is not valid text \(\\udcff\)"):
        AudioFolder(tmp_path / "audio", "all", **options)
    with pytest.warns(UserWarning, match="going on without"):
        dataset = AudioFolder(tmp_path / "audio", "all", skip_bad_files=True, **options)
    assert [path.name for path in dataset.files] == ["1.wav"]
    assert len(AudioFolder(tmp_path / "audio", "all")) == 2


def test_classes_of_one_file_have_no_validation_split(tmp_path: Path, record):
    for name in "abcd":
        record(tmp_path / "audio" / f"{name}.wav")
    message = (
        r"the validation split .* is empty: splits divide the files of each class, and its 4 usable files have 4 clas"
    )
    with pytest.raises(UserError, match=message):
        AudioFolder(tmp_path / "audio", "validation", pattern="{label}")
    assert len(AudioFolder(tmp_path / "audio", "validation", pattern="{label}", order="name", length=50)) == 2
