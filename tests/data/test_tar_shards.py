"""Tests of recordings in tar files: index, labels, parts, damaged shards and members, order of training."""

import io
import itertools
import json
import os
import pickle
import tarfile
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from torch.utils.data import DataLoader

from sashimi_diffusion.data import tar_shards as module
from sashimi_diffusion.data.tar_corpus import AUTOMATIC, expand_braces, find_shards
from sashimi_diffusion.data.tar_shards import TarShards
from sashimi_diffusion.errors import UserError


def noise(seed: int, samples: int = 60, channels: int = 1) -> np.ndarray:
    pcm = np.random.default_rng(seed).integers(-8000, 8000, (samples, channels))
    return (pcm / 2**15).astype(np.float32)


def wav(seed: int, samples: int = 60, channels: int = 1, rate: int = 16000) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, noise(seed, samples, channels), rate, format="WAV")
    return file.getvalue()


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Write 24 recordings with labels into three tar files of different sizes."""
    number = 0
    for shard, count in enumerate((10, 6, 8)):
        members = {}
        for _ in range(count):
            members[f"word-{number}.wav"] = wav(number)
            members[f"word-{number}.cls"] = f"{number % 3}\n".encode()
            members[f"word-{number}.json"] = json.dumps({"speaker": "ab"[number % 2], "label": "x"}).encode()
            number += 1
        write_tar(tmp_path / "shards" / f"train-{shard:02d}.tar", members)
    return tmp_path / "shards"


def test_recordings_are_those_of_the_members(shards: Path) -> None:
    dataset = TarShards(str(shards), "all", length=50, labels=AUTOMATIC, speakers="speaker")
    assert (dataset.class_names, dataset.speaker_names) == (["0", "1", "2"], ["a", "b"])
    assert dataset.groups == [10, 6, 8]
    for index in range(24):
        np.testing.assert_array_equal(dataset.clip(index), noise(index)[:, 0])
        assert (dataset.labels[index], dataset.speakers[index]) == (index % 3, index % 2)
    assert dataset[3]["waveform"].shape == (1, 50)
    assert dataset.clip_length(3) == 60
    assert dataset.name(11).endswith("train-01.tar/word-11.wav")


@pytest.mark.parametrize(
    ("options", "classes"),
    [
        ({"labels": None}, None),
        ({"labels": "cls"}, ["0", "1", "2"]),
        ({"labels": "speaker"}, ["a", "b"]),
        ({"labels": AUTOMATIC, "pattern": "{label}-{number}"}, ["word"]),
        ({"labels": AUTOMATIC, "pattern": "word-{number}"}, None),
        ({"labels": "number", "pattern": "word-{number}"}, [str(number) for number in range(24)]),
    ],
)
def test_labels(shards: Path, options: dict, classes: list[str] | None) -> None:
    assert TarShards(str(shards), "all", length=50, **options).class_names == classes


def test_labels_of_txt_members_are_only_used_on_request(tmp_path: Path) -> None:
    members = {"a.wav": wav(1), "a.txt": b" red ", "b.wav": wav(2), "b.txt": b"blue"}
    path = write_tar(tmp_path / "one.tar", members)
    assert TarShards(str(path), "all", labels=AUTOMATIC).class_names is None
    assert TarShards(str(path), "all", labels="txt").class_names == ["blue", "red"]


def test_parts_are_disjoint_complete_and_do_not_move(shards: Path) -> None:
    options = {"length": 50, "splits": (0.5, 0.25, 0.25)}
    parts = {split: TarShards(str(shards), split, **options) for split in ("train", "validation", "test")}
    names = {split: [part.name(index) for index in range(len(part))] for split, part in parts.items()}
    assert Counter(itertools.chain(*names.values())) == Counter(f"{shards}/{name}" for name in all_names())
    assert min(map(len, names.values())) >= 2
    write_tar(shards / "train-00a.tar", {"new.wav": wav(99), "word-3.wav": wav(3)})
    for split, before in names.items():
        part = TarShards(str(shards), split, **options)
        after = [part.name(index) for index in range(len(part))]
        assert [name for name in after if "00a" not in name] == before
        # The same name in another shard is in the same part.
        in_part = f"{shards}/train-00.tar/word-3.wav" in before
        assert (f"{shards}/train-00a.tar/word-3.wav" in after) == in_part
    with pytest.raises(UserError, match=r"the test split of .* is empty: it has 26 recordings, and a hash"):
        TarShards(str(shards), "test", length=50, splits=(0.5, 0.5, 0.0))


def all_names() -> list[str]:
    counts = itertools.accumulate((10, 6, 8), initial=0)
    ranges = itertools.pairwise(counts)
    return [f"train-{shard:02d}.tar/word-{number}.wav" for shard, ends in enumerate(ranges) for number in range(*ends)]


def test_the_index_is_read_once(shards: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr("sashimi_diffusion.data.tar_index.is_settled", lambda status: True)
    before = TarShards(str(shards), "train", length=50, labels=AUTOMATIC)
    with monkeypatch.context() as patch:
        patch.setattr("sashimi_diffusion.data.tar_index.tarfile.open", None)
        again = TarShards(str(shards), "train", length=50, labels=AUTOMATIC)
    assert again.fingerprint() == before.fingerprint()
    for memo in cache_dir.glob("*.shard.json"):
        memo.write_bytes(memo.read_bytes()[:-3])
    assert TarShards(str(shards), "train", length=50, labels=AUTOMATIC).fingerprint() == before.fingerprint()
    assert capsys.readouterr().err.count("the tar file is read again") == 3
    write_tar(shards / "train-02.tar", {"word-16.wav": wav(1), "word-16.cls": b"1"})
    assert TarShards(str(shards), "train", length=50, labels=AUTOMATIC).fingerprint() != before.fingerprint()


def test_channels_and_rates(tmp_path: Path, needs_torchaudio) -> None:
    path = str(write_tar(tmp_path / "a.tar", {"a.wav": wav(1, 100, 2), "b.wav": wav(2, 100, 2, rate=8000)}))
    stereo = TarShards(path, "all", length=50, channels=2)
    np.testing.assert_array_equal(stereo.clip(0), noise(1, 100, 2).T)
    assert stereo.changes == "1 of 2 recordings that were looked at are resampled from 8000 Hz to 16000 Hz"
    assert "2 of 2 recordings that were looked at are stereo" in TarShards(path, "all", length=50).changes
    with pytest.raises(UserError, match=r"a\.tar/a\.wav: 2 channels instead of 3; repair or remove it, or skip"):
        TarShards(path, "all", length=50, channels=3)


def test_a_bad_member_is_an_error_or_replaced_by_the_next(shards: Path) -> None:
    write_tar(shards / "train-03.tar", {"bad.wav": b"no audio", "good.wav": wav(50), "worse.wav": b""})
    with pytest.raises(UserError, match=r"train-03\.tar/worse\.wav: empty .* \(--skip-bad-files on") as caught:
        TarShards(str(shards), "all", length=50)
    assert "\n" not in str(caught.value)
    with pytest.warns(UserWarning, match=r"train-03\.tar/(bad|worse)\.wav: .*; going on without it") as said:
        dataset = TarShards(str(shards), "all", length=50, skip_bad_files=True)
    with warnings.catch_warnings(record=True) as later:
        assert [dataset.usable(index) for index in (23, 24, 25, 26)] == [23, 25, 25, 0]
        assert [dataset.usable(index) for index in (24, 26)] == [25, 0]
    assert len(said) + len(later) == 2  # each once
    path = write_tar(shards / "only" / "bad.tar", {"a.wav": b"x"})
    with (
        pytest.raises(UserError, match="no recording of the tar files can be used"),
        pytest.warns(UserWarning, match="going on without it"),
    ):
        TarShards(str(path), "all", length=50, skip_bad_files=True)


def test_bad_entries_of_a_shard_are_named(tmp_path: Path) -> None:
    members = {
        "a.wav": wav(1),
        "b.txt": b"alone",
        "c.wav": wav(2),
        "c.flac": wav(2),
        "d.wav": wav(3),
        "d.json": b"{",
        "e.wav": wav(4),
        "e.json": b"[]",
        "._a.wav": b"resource fork",
        "f.wav": wav(5),
        "f.json": b'{"kind": 1}',
    }
    path = write_tar(tmp_path / "one.tar", members)
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("g.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    with pytest.raises(UserError, match=r"6 of 7 audio files in .* cannot be used") as caught:
        TarShards(str(path), "all", labels="kind")
    for complaint in (
        "one.tar/a.wav: it has no label",
        "one.tar/b: no audio file (txt)",
        "one.tar/c: 2 audio files (flac, wav)",
        "one.tar/d.wav: d.json is not JSON",
        "one.tar/e.wav: e.json is no JSON object",
        "one.tar/g.wav: no regular file",
    ):
        assert complaint in str(caught.value)
    with pytest.warns(UserWarning, match="going on without them"):
        assert len(TarShards(str(path), "all", labels="kind", skip_bad_files=True)) == 1
    two = write_tar(tmp_path / "two.tar", {"c.wav": wav(2), "c.mic.flac": wav(3)})
    np.testing.assert_array_equal(TarShards(str(two), "all", audio="mic.flac").clip(0), noise(3)[:, 0])


def cut_in_a_header(content: bytes) -> bytes:
    return content[: 2 * 1024 + 100]


def cut(content: bytes) -> bytes:
    return content[: 2 * 1024 + 600]


def cut_at_a_member(content: bytes) -> bytes:
    return content[: 2 * 1024]


def changed(content: bytes) -> bytes:
    return content[:2048] + b"\x01" * 512 + content[2560:]


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (cut, "cut short"),
        (cut_in_a_header, "cut short after 2"),
        (cut_at_a_member, "cut short after"),
        (changed, "damaged at byte 2048 after 2 recordings"),
    ],
)
def test_a_damaged_shard_is_named(tmp_path: Path, damage: Callable[[bytes], bytes], complaint: str) -> None:
    """Every member with its header has 1024 bytes here; tarfile takes a damaged header for the end of the file."""
    path = write_tar(tmp_path / "one.tar", {f"{number}.wav": wav(number) for number in range(5)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=rf"one\.tar.*: .*{complaint}"):
        TarShards(str(path), "all")
    with pytest.warns(UserWarning, match="going on without"):
        dataset = TarShards(str(path), "all", skip_bad_files=True)
    np.testing.assert_array_equal(dataset.clip(1), noise(1)[:, 0])


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"", "is no tar file"), (b"x" * 2000, "is no tar file"), (b"\x1f\x8b\x08" + bytes(600), "is not compressed")],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(UserError, match=complaint) as caught:
        TarShards(str(tmp_path / "a.tar"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "complaint"),
    [
        ("none.tar", "none.tar does not exist: expected a tar file of recordings"),
        ("empty", "no tar file in .*empty"),
        ("shards/train-{00..03}.tar", r"1 of 4 tar files of data.path .* do not exist: .*train-03\.tar"),
        ("shards/train-{a}.tar", r"\{a\} is no range such as"),
        ("shards/train-{5..1}.tar", r"\{5\.\.1\} must count up"),
        ("shards/train-{0..99999999}.tar", "at most 100,000 numbers"),
    ],
)
def test_paths_that_cannot_be_used(shards: Path, path: str, complaint: str) -> None:
    (shards.parent / "empty").mkdir()
    with pytest.raises(UserError, match=complaint):
        TarShards(str(shards.parent / path))


def test_braces(shards: Path) -> None:
    assert expand_braces("a-{08..10}.tar") == ["a-08.tar", "a-09.tar", "a-10.tar"]
    assert expand_braces("{x,y}/{1..2}") == ["x/1", "x/2", "y/1", "y/2"]
    assert find_shards(f"{shards}/train-{{00..02}}.tar") == find_shards(str(shards))
    write_tar(shards / "train-{literal}.tar", {})
    assert find_shards(f"{shards}/train-{{literal}}.tar") == [shards / "train-{literal}.tar"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"labels": "wrd"}, "data.label_column is 'wrd', but no recording has it"),
        ({"speakers": "voice"}, "data.speakers is 'voice', but no recording has it"),
        ({"audio": "mp3"}, "no usable file is left"),
        ({"pattern": "{a}_{b}"}, "its name is not of the form {a}_{b}"),
        ({"split": "dev"}, "unknown split 'dev'"),
    ],
)
def test_options_that_cannot_be_used(shards: Path, options: dict, complaint: str) -> None:
    with pytest.raises(UserError) as caught:
        TarShards(str(shards), **{"split": "all", "length": 50} | options)
    assert complaint in str(caught.value)


def test_few_recordings_are_kept_in_memory(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_KEPT_SAMPLES", 150)
    dataset = TarShards(str(shards), "all", length=50)
    for index in range(24):
        dataset.clip(index)
        assert len(dataset._decoded._values) <= 2
    assert dataset._decoded._total <= 150


def test_worker_processes_read_for_themselves(shards: Path) -> None:
    dataset = pickle.loads(pickle.dumps(TarShards(str(shards), "all", length=50, labels=AUTOMATIC)))
    assert len(dataset._decoded._values) == 0
    loader = DataLoader(dataset, batch_size=12, num_workers=1, multiprocessing_context="fork")
    first, second = loader
    np.testing.assert_array_equal(second["waveform"][11, 0], noise(23)[:50, 0])
    assert first["label"].tolist() == [0, 1, 2] * 4


def test_unusual_levels_are_said_once(tmp_path: Path) -> None:
    silent = io.BytesIO()
    soundfile.write(silent, np.zeros(50), 16000, format="WAV")
    path = write_tar(tmp_path / "a.tar", {"a.wav": silent.getvalue(), "b.wav": wav(1)})
    with pytest.warns(UserWarning, match=r"a\.tar/a\.wav: silent .*; it is used as it is") as said:
        dataset = TarShards(str(path), "all", length=50)
    dataset._decoded._values.clear()
    with warnings.catch_warnings(record=True) as later:
        dataset.clip(0)
    assert len(said) + len(later) == 1


@pytest.mark.parametrize("field", ["label", "speaker"])
def test_a_label_that_is_no_text_is_a_bad_recording(tmp_path: Path, field: str) -> None:
    """JSON may have lone surrogates, which no file can have."""
    wanted = {"labels": AUTOMATIC} if field == "label" else {"labels": None, "speakers": "speaker"}
    members = {"0.wav": wav(0), "0.json": b'{"%s": "a"}' % field.encode()}
    members |= {"1.wav": wav(1), "1.json": b'{"%s": "\\ud800"}' % field.encode()}
    path = write_tar(tmp_path / "one.tar", members)
    with pytest.raises(UserError, match=rf"1\.wav: its {field} is not valid text \(\\ud800\)"):
        TarShards(str(path), "all", length=50, **wanted)
    with pytest.warns(UserWarning, match="going on without"):
        dataset = TarShards(str(path), "all", length=50, skip_bad_files=True, **wanted)
    assert (dataset.class_names or dataset.speaker_names) == ["a"]
    only_bad = write_tar(tmp_path / "two.tar", {name: members[name] for name in ("1.wav", "1.json")})
    with pytest.raises(UserError, match="no usable file is left"):
        TarShards(str(only_bad), "all", skip_bad_files=True, **wanted)


def test_names_of_members_that_are_no_text_are_no_labels(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "one.tar", {"a-1.wav": wav(0), os.fsdecode(b"\xff-1.wav"): wav(1)})
    with pytest.raises(UserError, match=r"its label is not valid text \(\\udcff\)"):
        TarShards(str(path), "all", length=50, labels="label", pattern="{label}-{number}")
    assert len(TarShards(str(path), "all", length=50)) == 2


@pytest.mark.parametrize("place", ["beginning", "middle", "end"])
@pytest.mark.parametrize("samples", [100, 5000])
def test_recordings_of_equal_names_and_sizes_are_others(tmp_path: Path, place: str, samples: int) -> None:
    """A resumed run compares some bytes of each recording; a copy with other time stamps is the same."""
    members = {f"{number}.wav": wav(number, samples) for number in range(3)}
    path = write_tar(tmp_path / "one.tar", members)
    before = TarShards(str(path), "all", length=50).fingerprint()
    os.utime(path, (1, 1))
    assert TarShards(str(path), "all", length=50).fingerprint() == before
    changed = bytearray(members["1.wav"])
    changed[{"beginning": 50, "middle": len(changed) // 2, "end": -1}[place]] ^= 1
    write_tar(path, members | {"1.wav": bytes(changed)})
    after = TarShards(str(path), "all", length=50).fingerprint()
    assert after[0] == before[0]
    assert after[1] != before[1]
