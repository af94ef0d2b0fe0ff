"""Tests of Speech Commands: folder layouts, words, splits, labels and downloads."""

import os
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sashimi_diffusion.data import SpeechCommandsDigits as OlderName
from sashimi_diffusion.data import cache as cache_module
from sashimi_diffusion.data.levels import contrast_db
from sashimi_diffusion.data.speech_commands import DIGITS, SpeechCommands, hashed_split
from sashimi_diffusion.errors import UserError


def lay_out(root: Path, record, ending: str = ".wav", lists: bool = True) -> None:
    """Write each digit by three speakers in the layout of the archive, and two folders that are not digits."""
    for word in [*DIGITS, "yes", "_background_noise_"]:
        for number, speaker in enumerate(["aaa", "bbb", "ccc"]):
            record(root / word / f"{speaker}_nohash_{number}{ending}", 16000 if word == "one" else 9000)
    if lists:
        (root / "validation_list.txt").write_text("".join(f"{word}/bbb_nohash_1.wav\n" for word in [*DIGITS, "yes"]))
        (root / "testing_list.txt").write_text("".join(f"{word}/ccc_nohash_2.wav\n" for word in [*DIGITS, "yes"]))


@pytest.mark.parametrize("below", [".", "speech_commands_v0.02", "SpeechCommands/speech_commands_v0.02"])
@pytest.mark.parametrize("ending", [".wav", ".flac"])
def test_all_layouts_and_the_official_lists_are_read(tmp_path: Path, record, below: str, ending: str):
    lay_out(tmp_path / "data" / below, record, ending)
    for split, speaker in [("train", "aaa"), ("validation", "bbb"), ("test", "ccc")]:
        dataset = SpeechCommands(tmp_path / "data", split)
        assert [path.name.split("_")[0] for path in dataset.files] == [speaker] * 10
        assert [path.parent.name for path in dataset.files] == DIGITS
        assert [item["label"] for item in dataset] == list(range(10))
        assert dataset.class_names == DIGITS
        assert (dataset.sample_rate, dataset.length) == (16000, 16000)


def test_items_are_padded_on_the_right_or_cut(tmp_path: Path, record):
    lay_out(tmp_path / "data", record)
    dataset = SpeechCommands(tmp_path / "data", "train", length=12000)
    zero, one = dataset[0], dataset[1]
    assert zero["waveform"].shape == (1, 12000)
    assert zero["waveform"].dtype == torch.float32
    noise = record(tmp_path / "data" / "zero" / "aaa_nohash_0.wav", 9000)
    np.testing.assert_array_equal(zero["waveform"][0, :9000], noise)
    assert not zero["waveform"][0, 9000:].any()
    assert dataset.clip(0).shape == (9000,)
    assert dataset.clip(1).shape == (16000,)
    np.testing.assert_array_equal(one["waveform"][0], dataset.clip(1)[:12000])


def test_all_splits_share_one_cache_entry(tmp_path: Path, record, monkeypatch: pytest.MonkeyPatch):
    lay_out(tmp_path / "data", record)
    SpeechCommands(tmp_path / "data", "train")
    monkeypatch.setattr(cache_module, "decode_audio", None)
    assert len(SpeechCommands(tmp_path / "data", "test")) == 10


def test_the_hash_rule_applies_without_lists(tmp_path: Path, record):
    speakers = {"train": "004ae714", "validation": "060cd039", "test": "bb05582b"}
    for speaker in speakers.values():
        for digit in DIGITS:
            record(tmp_path / "data" / digit / f"{speaker}_nohash_0.wav", 50)
    for split, speaker in speakers.items():
        dataset = SpeechCommands(tmp_path / "data", split)
        assert [path.name for path in dataset.files] == [f"{speaker}_nohash_0.wav"] * 10


def test_the_hash_rule_agrees_with_the_published_lists():
    """Compare with speakers of the published lists; training speakers are in neither list."""
    published = {
        "validation": "026290a7 060cd039 099d52ad",
        "test": "bb05582b 97f4c236 f2e59fea fdb5155e dc75148d 3f170018 18f8afd5 e1469561 5c8af87a aa48c94a",
        "train": "004ae714 012c8314 0132a06d 0137b3f4",
    }
    for split, speakers in published.items():
        for speaker in speakers.split():
            assert hashed_split(f"{speaker}_nohash_0.wav") == hashed_split(f"{speaker}_nohash_3.flac") == split
    assert hashed_split("bb05582b_nohash_0.wav", testing_percentage=0) == "train"


def test_the_real_recordings(shared_data: Path):
    train, validation = (SpeechCommands(shared_data / "sc09", split) for split in ("train", "validation"))
    listed = (shared_data / "sc09" / "validation_list.txt").read_text().split()
    assert len(validation) == len(listed)
    assert len(train) + len(validation) == 2291
    # The published list was made with the README's rule, so the two must agree on every recording.
    assert {hashed_split(path.name) for path in validation.files} == {"validation"}
    assert {hashed_split(path.name) for path in train.files} == {"train"}
    assert np.bincount(train.labels, minlength=10).min() >= 1
    item = train[len(train) - 1]
    assert item["waveform"].shape == (1, 16000)
    assert 0.001 < item["waveform"].abs().max() <= 1
    with pytest.raises(UserError, match="no recordings of the test split"):
        SpeechCommands(shared_data / "sc09", "test")


def test_bad_files_of_all_splits_are_listed_in_one_message(tmp_path: Path, record):
    root = tmp_path / "data"
    lay_out(root, record)
    (root / "zero" / "aaa_nohash_0.wav").write_text("text")
    (root / "one" / "bbb_nohash_1.wav").write_bytes(b"")
    record(root / "two" / "ccc_nohash_2.wav", 4000, rate=8000)
    with pytest.raises(UserError) as caught:
        SpeechCommands(root, "train")
    message = str(caught.value)
    assert message.startswith(f"3 of 30 audio files in {root} cannot be used")
    assert "zero/aaa_nohash_0.wav: not audio" in message
    assert "one/bbb_nohash_1.wav: empty" in message
    assert "two/ccc_nohash_2.wav: wrong sample rate (8000 Hz instead of 16000 Hz)" in message
    assert "--skip-bad-files" in message
    with pytest.warns(UserWarning, match=r"3 of 30 .*cannot be used") as warned:
        dataset = SpeechCommands(root, "train", skip_bad_files=True)
    assert "two/ccc_nohash_2.wav: wrong sample rate" in str(warned[0].message)
    assert len(dataset) == 9
    assert dataset[0]["label"] == 1


def fake_torchaudio(monkeypatch: pytest.MonkeyPatch, download) -> None:
    datasets = types.SimpleNamespace(SPEECHCOMMANDS=download)
    module = types.ModuleType("torchaudio")
    module.datasets = datasets
    monkeypatch.setitem(sys.modules, "torchaudio", module)


def test_the_download_is_found_where_torchaudio_puts_it(tmp_path: Path, record, monkeypatch: pytest.MonkeyPatch):
    calls = []

    def download(root, url, download):
        calls.append((root, url, download))
        lay_out(Path(root) / "SpeechCommands" / url, record)

    fake_torchaudio(monkeypatch, download)
    for _ in range(2):
        assert len(SpeechCommands(tmp_path / "new", "train", download=True)) == 10
    assert calls == [(tmp_path / "new", "speech_commands_v0.02", True)]


def test_torchaudio_accepts_the_arguments_of_the_download(tmp_path: Path, record, needs_torchaudio):
    import torchaudio

    lay_out(tmp_path / "SpeechCommands" / "speech_commands_v0.02", record)
    theirs = torchaudio.datasets.SPEECHCOMMANDS(tmp_path, url="speech_commands_v0.02", download=False, subset="testing")
    ours = SpeechCommands(tmp_path, "test")
    assert {path.resolve() for path in ours.files} == {
        Path(name).resolve() for name in theirs._walker if Path(name).parent.name in DIGITS
    }


def test_a_failed_download_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def download(root, url, download):
        raise OSError("Name or service not known")

    fake_torchaudio(monkeypatch, download)
    with pytest.raises(UserError, match=r"downloading Speech Commands into .* failed: Name or service not known"):
        SpeechCommands(tmp_path / "new", download=True)


def test_downloading_without_torchaudio_is_refused(without_torchaudio, tmp_path: Path):
    with pytest.raises(UserError, match=r"needs torchaudio.*unpack http"):
        SpeechCommands(tmp_path / "new", download=True)


def test_wrong_input(tmp_path: Path, record):
    with pytest.raises(UserError, match=r"does not exist: expected Speech Commands.*tar\.gz"):
        SpeechCommands(tmp_path / "nowhere")
    with pytest.raises(UserError, match="has no folder named zero, one"):
        SpeechCommands(tmp_path)
    for digit in DIGITS:
        (tmp_path / digit).mkdir()
    with pytest.raises(UserError, match="hold no audio"):
        SpeechCommands(tmp_path)
    shutil.rmtree(tmp_path / "nine")
    with pytest.raises(UserError, match="has no folder named nine:"):
        SpeechCommands(tmp_path)
    with pytest.raises(UserError, match="unknown split 'valid'"):
        SpeechCommands(tmp_path, "valid")


def test_silent_recordings_are_named_once_in_one_warning(tmp_path: Path, record):
    lay_out(tmp_path / "data", record)
    for name in ("aaa_nohash_0.wav", "bbb_nohash_1.wav"):
        soundfile.write(tmp_path / "data" / "seven" / name, np.zeros(100), 16000)
    with pytest.warns(UserWarning, match=r"2 of 30 audio files(.|\n)*seven/aaa_nohash_0.wav: silent") as caught:
        assert len(SpeechCommands(tmp_path / "data")) == 10
    assert len(caught) == 1


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"zero/\xb2.wav\n"])
def test_a_list_that_is_not_text_is_named(tmp_path: Path, record, content: bytes):
    lay_out(tmp_path / "data", record)
    (tmp_path / "data" / "testing_list.txt").write_bytes(content)
    with pytest.raises(UserError, match=r"testing_list\.txt is not UTF-8 text: expected the list of the test split"):
        SpeechCommands(tmp_path / "data")


def test_lines_of_a_list_that_name_no_file_are_ignored(tmp_path: Path, record):
    lay_out(tmp_path / "data", record)
    with (tmp_path / "data" / "testing_list.txt").open("a") as file:
        file.write(".\n/\n..\n\n \n")
    assert len(SpeechCommands(tmp_path / "data", "test")) == 10


def test_a_fifo_and_a_broken_link_are_bad_files(tmp_path: Path, record):
    lay_out(tmp_path / "data", record)
    os.mkfifo(tmp_path / "data" / "one" / "pipe.wav")
    (tmp_path / "data" / "two" / "link.wav").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"2 of 32 audio files(.|\n)*one/pipe\.wav: .*\n.*two/link\.wav: unreadable"):
        SpeechCommands(tmp_path / "data")


def test_names_that_are_not_text_are_accepted(tmp_path: Path, record):
    lay_out(tmp_path / "data", record, lists=False)
    one = tmp_path / "data" / "one"
    name = os.fsdecode(b"\xb2aa_nohash_0.wav")
    (one / "aaa_nohash_0.wav").rename(one / name)
    dataset = SpeechCommands(tmp_path / "data", hashed_split(name))
    assert one / name in dataset.files


def test_any_words_in_their_order(tmp_path: Path, record):
    lay_out(tmp_path / "data", record)
    dataset = SpeechCommands(tmp_path / "data", "validation", words=["yes", "two"])
    assert dataset.class_names == ["yes", "two"]
    assert [(path.parent.name, label) for path, label in zip(dataset.files, dataset.labels, strict=True)] == [
        ("yes", 0),
        ("two", 1),
    ]
    assert OlderName(tmp_path / "data").class_names == DIGITS


def test_words_in_several_folders_each_with_its_lists(tmp_path: Path, record):
    held_out = {"a": ["go/v_nohash_0"], "b": ["up/t_nohash_0", "go/w_nohash_0"]}
    for folder, others in {"a": ["go/t_nohash_0"], "b": ["up/v_nohash_0"]}.items():
        for name in [*held_out[folder], *others]:
            record(tmp_path / folder / f"{name}.wav", 100)
        (tmp_path / folder / "validation_list.txt").write_text("".join(f"{name}.wav\n" for name in held_out[folder]))
        (tmp_path / folder / "testing_list.txt").write_text("")
    folders = [tmp_path / "a", str(tmp_path / "b")]
    validation, train = (SpeechCommands(folders, split, words=["up", "go"]) for split in ("validation", "train"))
    names = [[path.relative_to(tmp_path).as_posix() for path in part.files] for part in (validation, train)]
    assert names == [
        ["b/up/t_nohash_0.wav", "a/go/v_nohash_0.wav", "b/go/w_nohash_0.wav"],
        ["b/up/v_nohash_0.wav", "a/go/t_nohash_0.wav"],
    ]
    assert (validation.labels.tolist(), train.labels.tolist()) == ([0, 1, 1], [0, 1])
    (tmp_path / "a" / "go" / "broken.wav").write_text("text")
    with pytest.raises(UserError, match=r"1 of 6 audio files in .* cannot be used: a/go/broken\.wav: not audio"):
        SpeechCommands(folders, words=["up", "go"])
    (tmp_path / "a" / "go" / "broken.wav").unlink()
    shutil.copy(tmp_path / "b" / "go" / "w_nohash_0.wav", tmp_path / "a" / "go")
    with pytest.raises(UserError, match=r"the same recording is in two folders, .*a/go/w_nohash_0\.wav and .*b/go/w"):
        SpeechCommands(folders, words=["up", "go"])


def test_words_without_a_folder_are_named_with_similar_names(tmp_path: Path, record):
    lay_out(tmp_path / "data", record)
    with pytest.raises(UserError) as error:
        SpeechCommands(tmp_path / "data", words=["one", "yess", "upward"])
    assert "has no folder named yess (did you mean yes?), upward: expected Speech Commands v0.02" in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"one folder is there twice"):
        SpeechCommands([tmp_path / "data", tmp_path / "data" / "."], words=["one"])
    with pytest.raises(UserError, match="does not exist"):
        SpeechCommands([tmp_path / "data", tmp_path / "nowhere"], words=["one", "left"])
    for words, message in [
        ([], "at least one word"),
        ("one", "a list of at least one word"),
        (["one", "two", "one"], "the word one is there twice"),
        (["../one"], "is no word"),
        ([""], "is no word"),
        ([True], "True is no word"),
    ]:
        with pytest.raises(UserError, match=message):
            SpeechCommands(tmp_path / "data", words=words)


def test_recordings_without_a_word_are_left_out(tmp_path: Path, record):
    """Noise has no contrast, and silence none; neither has a word on a large constant offset."""
    root = tmp_path / "data"
    noise = record(root / "go" / "a_nohash_0.wav", 4000)
    word = np.concatenate([0.001 * noise, noise, 0.001 * noise])
    for speaker, samples in {"b": word, "c": np.zeros(4000), "d": 0.2 * word + 0.6}.items():
        soundfile.write(root / "go" / f"{speaker}_nohash_0.wav", samples, 16000)
    (root / "validation_list.txt").write_text("")
    (root / "testing_list.txt").write_text("")
    with pytest.warns(UserWarning, match="silent"):
        whole = SpeechCommands(root, words=["go"])
    assert (len(whole), whole.changes) == (4, "")
    with pytest.warns(UserWarning, match="silent"):
        kept = SpeechCommands(root, words=["go"], min_contrast_db=15)
    assert [path.name for path in kept.files] == ["b_nohash_0.wav"]
    assert kept.changes == "3 of 4 recordings are left out, with a contrast below 15 dB"
    assert contrast_db(word, 16000) == pytest.approx(60, abs=1)
    assert contrast_db(np.ones(3), 16000) == 0
    with (
        pytest.warns(UserWarning, match="silent"),
        pytest.raises(UserError, match=r"no recording of the train split in .* has a contrast of 90 dB"),
    ):
        SpeechCommands(root, words=["go"], min_contrast_db=90)


def test_the_nine_words_of_the_real_recordings(shared_data: Path):
    words = ["zero", "one", "five", "eight", "down", "go", "left", "right", "up"]
    folders = [shared_data / "sc09", shared_data / "commands"]
    train, validation = (SpeechCommands(folders, split, words=words) for split in ("train", "validation"))
    assert np.bincount(train.labels, minlength=9).min() > 400
    assert np.bincount(validation.labels, minlength=9).min() > 40
    speakers = [{path.name.partition("_nohash_")[0] for path in part.files} for part in (train, validation)]
    assert not speakers[0] & speakers[1]
    assert {hashed_split(path.name) for path in validation.files} == {"validation"}
