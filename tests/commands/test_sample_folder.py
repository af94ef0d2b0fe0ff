"""Tests of the output folder of sampling commands: what its record names, and what happens to earlier clips."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from accelerate import PartialState

from sashimi_diffusion.commands import sample_folder
from sashimi_diffusion.commands.sample_folder import SampleFolder, require_space, share_of_batches
from sashimi_diffusion.data.audio import write_audio
from sashimi_diffusion.errors import UserError

SOUND = 0.1 * np.sin(np.arange(100))


@dataclass
class Clip:
    index: int
    file: str | None
    score: float | None = None


@pytest.fixture(scope="module")
def state() -> PartialState:
    return PartialState(cpu=True)


def open_folder(
    out: Path, state: PartialState, count: int = 3, overwrite: bool = False, numbered: bool = False
) -> SampleFolder:
    clips = [Clip(index, f"{'unsorted-' if numbered else ''}{index:04d}.wav") for index in range(count)]
    return SampleFolder(out, clips, {"seed": 7}, overwrite, state, numbered)


def write(folder: SampleFolder, *indices: int) -> None:
    batch = [folder.clips[index] for index in indices]
    folder.start()
    for clip in batch:
        write_audio(folder.path / clip.file, SOUND, 1000)
        clip.score = clip.index / 4
    folder.add(batch)


def generate(out: Path, state: PartialState, count: int = 3, overwrite: bool = False) -> None:
    with open_folder(out, state, count, overwrite) as folder:
        write(folder, *range(count))
        folder.finish([SOUND], 1000, ["0000"], speed=2.5)


def record(out: Path) -> dict:
    return json.loads((out / "samples.json").read_text())


def names(out: Path) -> list[str]:
    return sorted(path.name for path in out.iterdir())


def test_the_record_is_written_first_and_completed_after_each_batch(tmp_path: Path, state: PartialState) -> None:
    out = tmp_path / "a" / "b"
    with open_folder(out, state) as folder:
        assert names(out) == []
        folder.start()
        assert names(out) == ["samples.json"]
        assert [clip["file"] for clip in record(out)["samples"]] == ["0000.wav", "0001.wav", "0002.wav"]
        write(folder, 0)
        write(folder, 1)
        made = record(out)
        assert (made["seed"], made["complete"]) == (7, False)
        assert [clip["score"] for clip in made["samples"]] == [0, 0.25, None]
        write(folder, 2)
        folder.finish([SOUND], 1000, ["0000"], speed=2.5)
    made = record(out)
    assert (made["speed"], made["complete"]) == (2.5, True)
    assert [clip["score"] for clip in made["samples"]] == [0, 0.25, 0.5]
    assert made["versions"].keys() == {"python", "torch", "sashimi-diffusion", "diffusers", "accelerate"}
    assert names(out) == ["0000.wav", "0001.wav", "0002.wav", "contact_sheet.png", "samples.json"]


def test_a_record_of_many_clips_is_not_written_after_each_batch(
    tmp_path: Path, state: PartialState, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, writes = 100, []
    monkeypatch.setattr(sample_folder, "_MOST_RECORDS", 10)
    original = SampleFolder._write_record
    monkeypatch.setattr(SampleFolder, "_write_record", lambda self: (writes.append(1), original(self)))
    with open_folder(tmp_path, state, count) as folder:
        folder.start()
        for index in range(count):
            folder.clips[index].score = 1.0
            folder.add([folder.clips[index]])
        assert len(writes) == 11
        folder.clips[0].score = 2.0
        folder.finish([SOUND], 1000, ["0000"])
    assert [clip["score"] for clip in record(tmp_path)["samples"]] == [2.0] + 99 * [1.0]


@pytest.mark.parametrize("error", [UserError("bad"), KeyboardInterrupt()])
def test_a_failure_leaves_a_record_of_what_was_written(
    error: BaseException, tmp_path: Path, state: PartialState
) -> None:
    def fail_later() -> None:
        with open_folder(tmp_path, state, 400) as folder:
            write(folder, 0)
            raise error

    with pytest.raises(type(error)):
        fail_later()
    assert [clip["score"] for clip in record(tmp_path)["samples"]][:2] == [0, None]


def test_a_failure_before_the_first_clip_leaves_nothing(tmp_path: Path, state: PartialState) -> None:
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "new" / "out", tmp_path / "empty"):
        with pytest.raises(UserError), open_folder(out, state):
            raise UserError("out of memory")
    assert names(tmp_path) == ["empty"]
    assert names(tmp_path / "empty") == []


def test_a_folder_with_clips_is_refused(tmp_path: Path, state: PartialState) -> None:
    generate(tmp_path, state)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UserError, match=r"already has 3 clips: choose another --out, or --overwrite$"):
        generate(tmp_path, state, 2)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    for name, found in {"x.FLAC": "1 clip:", "samples.json": r"samples\.json", "contact_sheet.png": "contact"}.items():
        out = tmp_path / name.replace(".", "-")
        out.mkdir()
        (out / name).write_text("mine")
        with pytest.raises(UserError, match=f"already has {found}"):
            generate(out, state)
        assert names(out) == [name]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "notes.txt").write_text("no clip")
    generate(tmp_path / "notes", state)


def test_only_clips_that_the_record_names_are_removed(
    tmp_path: Path, state: PartialState, capsys: pytest.CaptureFixture
) -> None:
    generate(tmp_path / "out", state, 5)
    out = tmp_path / "out"
    for name in ("mine.wav", "other.mp3", "\x1b.wav", "notes.txt"):
        (out / name).write_text("mine")
    (tmp_path / "outside.wav").write_text("mine")
    made = record(out)
    made["samples"] += [{"file": name} for name in ("../outside.wav", str(tmp_path / "outside.wav"), "notes.txt")]
    made["samples"] += [{"file": name} for name in (None, 3, "..", "gone.wav")]
    (out / "samples.json").write_text(json.dumps(made))
    generate(out, state, 2, overwrite=True)
    kept = ["mine.wav", "other.mp3", "\x1b.wav", "notes.txt"]
    assert names(out) == sorted(["0000.wav", "0001.wav", "contact_sheet.png", "samples.json", *kept])
    assert all((out / name).read_text() == "mine" for name in kept)
    assert (tmp_path / "outside.wav").read_text() == "mine"
    note = capsys.readouterr().err
    assert f"note: {out} keeps 3 clips that its samples.json does not name: \\x1b.wav, mine.wav, other.mp3\n" in note


def test_a_file_of_the_user_under_the_name_of_a_clip_is_kept(tmp_path: Path, state: PartialState) -> None:
    for name, numbered in {"0001.wav": False, "0002.wav": True, "unsorted-0000.wav": True}.items():
        out = tmp_path / name
        out.mkdir()
        (out / name).write_text("mine")
        with pytest.raises(UserError, match=rf"{name} is in the way, and samples\.json does not name it"):
            open_folder(out, state, overwrite=True, numbered=numbered).__enter__()
        assert (out / name).read_text() == "mine"


@pytest.mark.parametrize("content", ["[]", '{"samples": 3}', '{"samples": [[]]}', "null", '{"other": 1}'])
def test_a_record_of_something_else_is_not_replaced(content: str, tmp_path: Path, state: PartialState) -> None:
    (tmp_path / "samples.json").write_text(content)
    with pytest.raises(UserError, match=r"samples\.json is no record of sashimi-sample: choose another --out"):
        generate(tmp_path, state, overwrite=True)
    assert names(tmp_path) == ["samples.json"]
    assert (tmp_path / "samples.json").read_text() == content


def test_clips_that_another_run_has_written_in_the_meantime_are_kept(tmp_path: Path, state: PartialState) -> None:
    first, second = open_folder(tmp_path / "out", state), open_folder(tmp_path / "out", state)
    with first:
        second.__enter__()
        write(first, 0)
        with pytest.raises(UserError, match="already has 1 clip:"):
            second.start()
        assert names(tmp_path / "out") == ["0000.wav", "samples.json"]


def test_links_in_the_folder_are_followed(tmp_path: Path, state: PartialState) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in ("samples.json", "contact_sheet.png"):
        (out / name).symlink_to(tmp_path / name)
    (tmp_path / "samples.json").write_text('{"samples": []}')
    generate(out, state, overwrite=True)
    assert all((out / name).is_symlink() for name in ("samples.json", "contact_sheet.png"))
    assert json.loads((tmp_path / "samples.json").read_text())["complete"]
    assert (tmp_path / "contact_sheet.png").read_bytes().startswith(b"\x89PNG")


def test_numbered_files_have_one_name_or_the_other_at_any_time(
    tmp_path: Path, state: PartialState, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if Path(target).name == "0001.wav":
            raise KeyboardInterrupt
        replace(source, target)

    def number() -> None:
        with open_folder(tmp_path, state, 4, numbered=True) as folder:
            write(folder, 0, 1, 2, 3)
            monkeypatch.setattr(sample_folder.os, "replace", killed)
            folder.number_files([folder.clips[2], folder.clips[3]])

    with pytest.raises(KeyboardInterrupt):
        number()
    monkeypatch.undo()
    assert names(tmp_path) == ["0000.wav", "samples.json", "unsorted-0003.wav"]
    made = record(tmp_path)
    assert [clip["file"] for clip in made["samples"]] == [None, None, "0000.wav", "0001.wav"]
    assert made["renamed"] == [f"unsorted-000{index}.wav" for index in range(4)]
    generate(tmp_path, state, 1, overwrite=True)
    assert names(tmp_path) == ["0000.wav", "contact_sheet.png", "samples.json"]


def test_numbers_that_are_not_finite_are_no_numbers_of_json(tmp_path: Path, state: PartialState) -> None:
    settings = {"scheduler": {"lowest": -math.inf, "all": [math.nan, 1.5]}}
    with SampleFolder(tmp_path, [Clip(0, "0000.wav")], settings, False, state) as folder:
        write(folder, 0)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    made = json.loads((tmp_path / "samples.json").read_text(), parse_constant=refuse)
    assert made["scheduler"] == {"lowest": "-inf", "all": ["nan", 1.5]}


def test_the_space_of_clips_that_will_be_removed_counts(
    tmp_path: Path, state: PartialState, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate(tmp_path, state, 1)
    (tmp_path / "0000.wav").write_bytes(bytes(7000))
    monkeypatch.setattr(sample_folder.shutil, "disk_usage", lambda _: type("Usage", (), {"total": 9, "free": 1000})())
    require_space(tmp_path, 1, 100, overwrite=True)
    for count, overwrite in ((2, True), (1, False)):
        with pytest.raises(UserError, match="ask for fewer --num-samples"):
            require_space(tmp_path, count, 100, overwrite)


def test_all_processes_have_the_same_number_of_batches() -> None:
    for count, size, processes in ((5, 2, 2), (1, 4, 3), (7, 2, 3), (6, 3, 2)):
        states = [type("State", (), {"num_processes": processes, "process_index": i})() for i in range(processes)]
        shares = [share_of_batches(list(range(count)), size, state) for state in states]
        assert len({len(share) for share in shares}) == 1
        assert sorted(clip for share in shares for batch in share for clip in batch) == list(range(count))


def test_the_end_of_another_process_is_one_line(
    tmp_path: Path, state: PartialState, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(_: object) -> None:
        raise RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer")

    monkeypatch.setattr(sample_folder, "gather_object", lost)
    with pytest.raises(UserError, match="another process of this run has ended"), open_folder(tmp_path, state) as out:
        write(out, 0)
    assert names(tmp_path) == ["0000.wav", "samples.json"]


def test_temporary_files_of_a_killed_run_are_removed(tmp_path: Path, state: PartialState) -> None:
    abandoned = tmp_path / ".0001.wav.0123456789abcdef.tmp"
    abandoned.write_bytes(b"half of a clip")
    os.utime(abandoned, (0, 0))
    generate(tmp_path, state, count=1)
    assert names(tmp_path) == ["0000.wav", "contact_sheet.png", "samples.json"]
