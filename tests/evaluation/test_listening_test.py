"""Tests of listening tests: neutral file names, validation of the answers, scores and agreement."""

import csv
import itertools
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.clips import open_clips
from sashimi_evaluation.listening_test import (
    RATINGS,
    creation,
    fleiss_kappa,
    mean_score,
    mean_weighted_kappa,
    score_listening_test,
    usable_files,
    weighted_kappa,
    write_listening_test,
)
from sashimi_evaluation.listening_test.ratings import COLUMNS

RATE = 8000


@pytest.fixture
def methods(tmp_path: Path) -> dict[str, list[Path]]:
    """Write four clips for each of two systems. Their lengths differ, so that a test can identify them."""
    (tmp_path / "clips").mkdir()
    files = {
        name: [tmp_path / "clips" / f"{name}-{number}.flac" for number in range(4)] for name in ("sashimi", "humans")
    }
    for length, file in enumerate((file for own in files.values() for file in own), 100):
        soundfile.write(file, np.full(length, 0.25), RATE)
    return files


def length_of(path: Path) -> int:
    return soundfile.info(path).frames


# --- Writing a test ---


def test_clips_are_copied_under_neutral_names_and_the_key_identifies_them(tmp_path: Path, methods):
    labels = {methods["sashimi"][2]: 7}
    key = write_listening_test(tmp_path / "test", methods, 5, 3, labels=labels)
    assert key == tmp_path / "test.key.json"
    clips = json.loads(key.read_text())["clips"]
    audio = sorted((tmp_path / "test" / "audio").iterdir())
    assert [file.name for file in audio] == [f"clip-{number:03}.wav" for number in range(1, 7)]
    for file in audio:
        clip = clips[file.stem]
        assert length_of(file) == length_of(Path(clip["file"]))
        assert Path(clip["file"]) in methods[clip["method"]]
        assert clip["label"] == (7 if Path(clip["file"]) in labels else None)
        assert soundfile.info(file).samplerate == RATE
    assert sorted(clip["method"] for clip in clips.values()) == ["humans"] * 3 + ["sashimi"] * 3
    assert len({clip["file"] for clip in clips.values()}) == 6


def test_the_folder_does_not_reveal_the_methods(tmp_path: Path, methods):
    write_listening_test(tmp_path / "test", methods, 0, 3)
    files = [file for file in (tmp_path / "test").rglob("*") if file.is_file()]
    assert len(files) == 7
    for file in files:
        content = file.read_bytes()
        assert not re.search(rb"sashimi|humans|flac", content)


def test_the_seed_determines_the_test(tmp_path: Path, methods):
    def made(name: str, seed: int, given: dict[str, list[Path]]) -> dict:
        return json.loads(write_listening_test(tmp_path / name, given, seed, 2).read_text())

    first = made("first", 0, methods)
    reversed_methods = {method: files[::-1] for method, files in reversed(methods.items())}
    assert made("again", 0, reversed_methods) == first
    others = [made(f"other-{seed}", seed, methods) for seed in range(1, 6)]
    assert len({json.dumps(other["clips"]) for other in others}) > 3
    assert len({tuple(clip["method"] for clip in other["clips"].values()) for other in others}) > 1  # shuffled
    assert first["test"] not in [other["test"] for other in others]


def test_the_page_asks_only_the_chosen_questions(tmp_path: Path, methods):
    def page(name: str, *ratings: str) -> dict:
        write_listening_test(tmp_path / name, methods, 0, 2, ratings)
        source = (tmp_path / name / "index.html").read_text(encoding="utf-8")
        return json.loads(re.search(r'<script type="application/json" id="test">(.*?)</script>', source)[1])

    everything = page("all", *reversed(RATINGS))
    assert everything["ratings"] == list(RATINGS)
    assert len(everything["clips"]) == 4
    assert sorted(everything["batches"]) == ["batch-1", "batch-2"]
    assert sorted(itertools.chain(*everything["batches"].values())) == sorted(everything["clips"])
    assert page("quality", "quality")["batches"] == {}
    assert page("diversity", "diversity")["clips"] == []


def test_the_page_needs_nothing_but_its_folder(tmp_path: Path, methods):
    write_listening_test(tmp_path / "test", methods, 0, 2)
    source = (tmp_path / "test" / "index.html").read_text(encoding="utf-8")
    assert "{{" not in source
    assert not re.search(r"https?:|url\(|@import", source)
    found: list[tuple[str, dict]] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append((tag, dict(attributes)))
    parser.feed(source)
    ids = [attributes["id"] for _, attributes in found if "id" in attributes]
    assert len(set(ids)) == len(ids)
    named = [attributes[name] for _, attributes in found for name in ("aria-labelledby", "for") if name in attributes]
    assert set(named) <= set(ids)
    assert all("src" not in attributes for _, attributes in found)
    assert found[0] == ("html", {"lang": "en"})


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"methods": {}}, "at least one method"),
        ({"clips_per_method": 5}, "'sashimi' has 4 clips, too few for 5"),
        ({"clips_per_method": 0}, "at least 1, got 0"),
        ({"ratings": ["quality", "beauty"]}, "got beauty"),
        ({"ratings": []}, "got none"),
        ({"labels": {Path("a.wav"): 10}}, "digits from 0 to 9, got 10 for a.wav"),
    ],
)
def test_invalid_requests_are_refused(tmp_path: Path, methods, changes: dict, complaint: str):
    with pytest.raises(UserError, match=complaint):
        write_listening_test(tmp_path / "test", **{"methods": methods, "clips_per_method": 2} | changes)
    assert not (tmp_path / "test").exists()


def test_a_clip_that_cannot_be_read_leaves_no_test_folder(tmp_path: Path, methods):
    methods["humans"][1].write_bytes(b"no sound")
    with pytest.raises(UserError, match=r"humans-1\.flac.*not audio"):
        write_listening_test(tmp_path / "test", methods, 0, 4)
    assert not (tmp_path / "test").exists()


def test_a_test_that_exists_is_not_overwritten(tmp_path: Path, methods):
    write_listening_test(tmp_path / "test", methods, 0, 2)
    with pytest.raises(UserError, match="already exists"):
        write_listening_test(tmp_path / "test", methods, 1, 2)
    shutil.rmtree(tmp_path / "test")
    with pytest.raises(UserError, match=r"test\.key\.json already exists"):
        write_listening_test(tmp_path / "test", methods, 1, 2)
    assert not (tmp_path / "test").exists()


def test_a_test_whose_creation_was_interrupted_is_completed(tmp_path: Path, methods, monkeypatch: pytest.MonkeyPatch):
    def interrupted(*arguments: object) -> bytes:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(creation, "_page", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_listening_test(tmp_path / "test", methods, 0, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips"]  # nothing is left behind
    key = write_listening_test(tmp_path / "test", methods, 0, 2)
    expected = {path: path.read_bytes() for path in (tmp_path / "test").rglob("*.*")}
    (tmp_path / "test" / "index.html").unlink()  # as if the process had been killed while it moved its files
    (tmp_path / "test" / "audio" / "clip-002.wav").unlink()
    assert write_listening_test(tmp_path / "test", methods, 0, 2) == key
    assert {path: path.read_bytes() for path in (tmp_path / "test").rglob("*.*")} == expected


def test_the_place_of_a_test(tmp_path: Path, methods, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"already exists and has other files"):
        write_listening_test(".", methods, 0, 2)
    with pytest.raises(UserError, match=r"/ cannot be the folder of a listening test"):
        write_listening_test("/", methods, 0, 2)
    Path("file").write_text("mine")
    with pytest.raises(UserError, match=r"file cannot be the folder of a listening test"):
        write_listening_test("file", methods, 0, 2)
    Path("empty").mkdir()
    monkeypatch.chdir("empty")
    assert write_listening_test(".", methods, 0, 2) == tmp_path / "empty.key.json"
    assert Path("index.html").is_file()
    assert Path("../file").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips", "empty", "empty.key.json", "file"]


def test_rates_that_browsers_do_not_play_are_converted(tmp_path: Path, methods):
    for method, rate in (("sashimi", 1_000_000), ("humans", 4000)):
        for file in methods[method]:
            tone = 0.5 * np.sin(2 * np.pi * 500 * np.arange(rate // 10) / rate)
            soundfile.write(file.with_suffix(".wav"), tone, rate)
        methods[method] = [file.with_suffix(".wav") for file in methods[method]]
    clips = json.loads(write_listening_test(tmp_path / "test", methods, 0, 2).read_text())["clips"]
    for name, clip in clips.items():
        samples, rate = soundfile.read(tmp_path / "test" / "audio" / f"{name}.wav")
        assert rate == (48000 if clip["method"] == "sashimi" else 8000)
        assert len(samples) == rate // 10
        assert np.abs(samples[rate // 50 : -rate // 50]).max() == pytest.approx(0.5, abs=0.01)


def test_all_bad_clips_are_named_or_left_out(tmp_path: Path, methods):
    for file in methods["humans"][:2]:
        file.write_bytes(b"no sound")
    with pytest.raises(
        UserError, match=r"humans-[01]\.flac: not audio.*humans-[01]\.flac: not audio.*repair or remove"
    ):
        write_listening_test(tmp_path / "test", methods, 0, 4)
    with pytest.warns(UserWarning, match="2 of 8 audio files"):
        usable = usable_files(open_clips(tmp_path / "clips"))
    assert usable == sorted([*methods["humans"][2:], *methods["sashimi"]])


# --- Scores ---


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """Write the key of a test of two methods with two clips each; only the clips of the first method have labels."""
    clips = {
        "clip-001": {"method": "ours", "file": "a", "label": 3},
        "clip-002": {"method": "real", "file": "b", "label": None},
        "clip-003": {"method": "ours", "file": "c", "label": 4},
        "clip-004": {"method": "real", "file": "d", "label": None},
    }
    content = {"test": "t1", "seed": 0, "ratings": RATINGS, "clips": clips, "batches": {"batch-1": "ours"}}
    (tmp_path / "t.key.json").write_text(json.dumps(content))
    return tmp_path / "t.key.json"


def rows(rater: str, *answers: tuple[int, int, str]) -> list[dict[str, str]]:
    return [
        {"test": "t1", "rater": rater, "item": f"clip-{number:03}", "quality": str(quality),
         "intelligibility": str(intelligible), "transcription": transcription, "diversity": "", "seconds": "3.5",
         "plays": "2", "finished": "2024-01-01T00:00:00.000Z"}
        for number, (quality, intelligible, transcription) in enumerate(answers, 1)
    ]  # fmt: skip


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def write(name: str, content: list[dict[str, str]], columns: tuple[str, ...] = COLUMNS) -> Path:
        with (tmp_path / name).open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, extrasaction="ignore")
            writer.writeheader()
            writer.writerows(content)
        return tmp_path / name

    return write


def test_means_by_method(key: Path, save):
    first = rows("r1", (4, 5, "3"), (5, 5, "1"), (2, 3, "none"), (5, 4, "2"))
    second = rows("r2", (3, 5, "3"), (4, 5, "1"), (1, 1, "4"), (5, 4, "2"))
    batch = first[0] | dict.fromkeys(("quality", "intelligibility", "transcription"), "")
    batch |= {"item": "batch-1", "diversity": "2"}
    result = score_listening_test(key, [save("a.csv", [*first, batch]), save("b.csv", second)])
    assert (result.test, result.raters) == ("t1", 2)
    ours, real = result.scores["ours"], result.scores["real"]
    assert ours["quality"].mean == pytest.approx((4 + 2 + 3 + 1) / 4)
    assert real["quality"].mean == pytest.approx((5 + 5 + 4 + 5) / 4)
    assert ours["intelligibility"].mean == pytest.approx((5 + 3 + 5 + 1) / 4)
    assert ours["accuracy"].mean == pytest.approx(3 / 4)
    assert "accuracy" not in real
    assert (ours["diversity"].mean, ours["diversity"].low, ours["diversity"].answers) == (2, None, 1)
    assert ours["quality"].answers == 4
    assert ours["quality"].low < 2.5 < ours["quality"].high
    # The raters agree on three of four transcriptions: (3/4 - e) / (1 - e). The answers are 3, 3, 1, 1, none, 4, 2, 2.
    by_chance = (3 * 2**2 + 2 * 1) / 8**2
    assert result.agreement["transcription"] == pytest.approx((0.75 - by_chance) / (1 - by_chance))
    assert result.agreement["quality"] == pytest.approx(weighted_kappa([3, 4, 1, 4], [2, 3, 0, 4], 5))
    assert np.isnan(result.agreement["diversity"])


def test_raters_may_share_a_file_and_leave_clips_out(key: Path, save):
    one = rows("r1", (4, 5, "3"), (5, 5, "1"))
    other = rows("r2", (2, 5, "3"))
    result = score_listening_test(key, [save("both.csv", one + other)])
    assert result.raters == 2
    assert result.scores["ours"]["quality"].mean == 3
    assert result.scores["real"]["quality"].answers == 1


def test_a_file_from_a_spreadsheet_is_read(key: Path, save):
    path = save("a.csv", rows("r1", (4, 5, "3")))
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert score_listening_test(key, [path]).raters == 1


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"test": "t2"}, r"a\.csv, line 3: the answers belong to the test 't2', the key belongs to 't1'"),
        ({"quality": "6"}, r"a\.csv, line 3: quality of clip-002 is '6', expected one of 1, 2, 3, 4, 5"),
        ({"intelligibility": ""}, r"a\.csv, line 3: intelligibility of clip-002 is ''"),
        ({"transcription": "ten"}, r"a\.csv, line 3: transcription of clip-002 is 'ten', expected one of 0, 1"),
        ({"item": "clip-009"}, r"a\.csv, line 3: the test has no item 'clip-009'"),
        ({"item": "clip-001"}, r"a\.csv, line 3: rater 'r1' has already rated clip-001 \(.*a\.csv, line 2\)"),
        ({"rater": ""}, r"a\.csv, line 3: the rater is missing"),
    ],
)
def test_invalid_answers_are_reported_with_file_and_line(key: Path, save, changes: dict[str, str], complaint: str):
    good, bad = rows("r1", (4, 5, "3"), (3, 3, "1"))
    with pytest.raises(UserError, match=complaint):
        score_listening_test(key, [save("a.csv", [good, bad | changes])])


def test_a_rater_in_two_files_is_refused(key: Path, save):
    content = rows("r1", (4, 5, "3"))
    with pytest.raises(UserError, match=r"b\.csv, line 2: rater 'r1' has already rated clip-001 \(.*a\.csv, line 2\)"):
        score_listening_test(key, [save("a.csv", content), save("b.csv", content)])


def test_files_without_valid_ratings_are_refused(key: Path, save, tmp_path: Path):
    with pytest.raises(UserError, match=r"a\.csv, line 1: the column 'plays' is missing"):
        score_listening_test(key, [save("a.csv", rows("r1", (4, 5, "3")), tuple(c for c in COLUMNS if c != "plays"))])
    cut = save("cut.csv", rows("r1", (4, 5, "3")))
    cut.write_text(cut.read_text() + "t1,r1,clip-002\n")
    with pytest.raises(UserError, match=r"cut\.csv, line 3: expected 10 values"):
        score_listening_test(key, [cut])
    with pytest.raises(UserError, match="no ratings in the files"):
        score_listening_test(key, [save("empty.csv", [])])
    with pytest.raises(UserError, match=r"gone\.csv does not exist: expected a CSV file"):
        score_listening_test(key, [tmp_path / "gone.csv"])
    (tmp_path / "sound.csv").write_bytes(bytes(range(256)))
    with pytest.raises(UserError, match=r"sound\.csv is not a CSV file"):
        score_listening_test(key, [tmp_path / "sound.csv"])
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(UserError, match=r"pipe\.csv is a FIFO"):
        score_listening_test(key, [tmp_path / "pipe.csv"])


@pytest.mark.parametrize("content", ["[]", "no json", '{"test": "t1"}', '{"clips": 1, "batches": 2}', "[" * 100_000])
def test_files_that_are_not_a_key_are_refused(tmp_path: Path, save, content: str):
    (tmp_path / "wrong.json").write_text(content)
    with pytest.raises(UserError, match=r"wrong\.json is not (the key of a listening test|JSON)"):
        score_listening_test(tmp_path / "wrong.json", [save("a.csv", rows("r1", (4, 5, "3")))])


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("test",), 5),
        (("ratings",), "quality"),
        (("ratings",), ["beauty"]),
        (("clips", "clip-001", "method"), ["ours"]),
        (("clips", "clip-001", "label"), "three"),
        (("clips", "clip-001", "label"), 10),
        (("clips", "clip-001", "label"), True),
        (("batches", "batch-1"), 3),
    ],
)
def test_a_key_with_values_of_other_types_is_refused(key: Path, save, place: tuple[str, ...], value: object):
    content = json.loads(key.read_text())
    target = content
    for name in place[:-1]:
        target = target[name]
    target[place[-1]] = value
    key.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"t\.key\.json is not the key of a listening test"):
        score_listening_test(key, [save("a.csv", rows("r1", (4, 5, "3")))])


# --- Intervals and agreement ---


def test_the_interval_widens_with_rater_and_clip_effects():
    generator = np.random.default_rng(0)
    noise = generator.standard_normal((12, 20))
    alone = mean_score(noise)
    assert alone.high - alone.low == pytest.approx(2 * 1.96 / np.sqrt(240), rel=0.9)
    by_rater = mean_score(noise + 3 * generator.standard_normal((12, 1)))
    by_clip = mean_score(noise + 3 * generator.standard_normal((1, 20)))
    assert by_rater.high - by_rater.low > 4 * (alone.high - alone.low)
    assert by_clip.high - by_clip.low > 4 * (alone.high - alone.low)


def test_the_interval_covers_the_true_mean():
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(60):
        effects = generator.standard_normal((10, 1)) + generator.standard_normal((1, 15))
        score = mean_score(effects + generator.standard_normal((10, 15)))
        covered += score.low <= 0 <= score.high
    assert covered >= 50  # an exact interval covers 57 on average


def test_missing_answers_do_not_count():
    values = np.array([[1.0, np.nan, np.nan], [3.0, 5.0, np.nan]])
    score = mean_score(values)
    assert (score.mean, score.answers) == (3, 3)
    assert 1 <= score.low <= score.high <= 5


def test_fleiss_kappa_of_a_worked_example():
    # Three items, three raters, two categories: the agreements are 1, 1/3, 1/3, the category shares 2/3 and 1/3.
    counts = np.array([[3, 0], [1, 2], [2, 1]])
    by_chance = (2 / 3) ** 2 + (1 / 3) ** 2
    assert fleiss_kappa(counts) == pytest.approx((5 / 9 - by_chance) / (1 - by_chance))
    assert fleiss_kappa(np.array([[2, 0], [0, 2]])) == 1
    assert fleiss_kappa(np.array([[1, 1], [1, 1]])) == -1
    assert fleiss_kappa(np.array([*counts, [1, 0], [0, 0]])) == fleiss_kappa(counts)  # without pairs of raters
    assert np.isnan(fleiss_kappa(np.array([[2, 0], [2, 0]])))
    assert np.isnan(fleiss_kappa(np.array([[1, 0]])))


def test_weighted_kappa_of_a_worked_example():
    # The squared differences per item are 0, 1, 4, 0. By chance: each answer of the first rater differs from the four
    # answers of the second by 4, 4, 12, 4 in sum.
    assert weighted_kappa([1, 2, 3, 1], [1, 3, 1, 1], 5) == pytest.approx(1 - (5 / 4) / (24 / 16))
    assert weighted_kappa([0, 1, 2], [2, 1, 0], 3) == pytest.approx(-1)
    assert np.isnan(weighted_kappa([1, 1], [1, 1], 3))
    assert np.isnan(weighted_kappa([], [], 3))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=30))
def test_weighted_kappa_agrees_with_its_definition(pairs: list[tuple[int, int]]):
    first, second = np.array(pairs).T
    table = np.zeros((5, 5))
    np.add.at(table, (first, second), 1 / len(pairs))
    weights = np.square(np.subtract.outer(np.arange(5), np.arange(5)))
    expected = (weights * np.outer(table.sum(axis=1), table.sum(axis=0))).sum()
    kappa = weighted_kappa(first, second, 5)
    if expected == 0:
        assert np.isnan(kappa)
    else:
        assert kappa == pytest.approx(1 - (weights * table).sum() / expected)
    assert kappa == pytest.approx(weighted_kappa(second, first, 5), nan_ok=True)


def test_without_scikit_learn_a_test_is_written_but_scoring_names_it(
    tmp_path: Path, methods, key: Path, save, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    write_listening_test(tmp_path / "test", methods, 0, 2)
    with pytest.raises(UserError, match="pip install scikit-learn"):
        score_listening_test(key, [save("a.csv", rows("r1", (4, 5, "3")) + rows("r2", (3, 5, "3")))])


def test_the_mean_over_pairs_of_raters_uses_items_that_both_rated():
    ratings = np.array([[0, 1, 2, np.nan], [0, 1, 2, 4], [np.nan, 2, 1, 0]])
    first, second = weighted_kappa([1, 2], [2, 1], 5), weighted_kappa([1, 2, 4], [2, 1, 0], 5)
    assert mean_weighted_kappa(ratings, 5) == pytest.approx((1 + first + second) / 3)
    assert np.isnan(mean_weighted_kappa(ratings[:1], 5))


@pytest.mark.parametrize(
    ("compute", "complaint"),
    [
        (lambda: fleiss_kappa(np.zeros(3)), r"shape \(items, categories\)"),
        (lambda: fleiss_kappa(np.array([[-1, 2]])), "none below 0"),
        (lambda: weighted_kappa([1], [1, 2], 3), "equal length"),
        (lambda: weighted_kappa([1], [3], 3), "from 0 to 2"),
        (lambda: weighted_kappa([0.5], [1], 3), "expected integers"),
    ],
)
def test_agreement_of_invalid_ratings_is_refused(compute: Callable[[], float], complaint: str):
    with pytest.raises(UserError, match=complaint):
        compute()
