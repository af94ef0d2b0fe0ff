"""Tests of damaged caches of recordings and features: each is made again, and one line says so."""

import io
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from sashimi_diffusion.cache_files import read_cache_file, read_cache_record, write_cache_file, write_cache_record
from sashimi_diffusion.data.cache import cached_recordings
from sashimi_evaluation.clips import open_clips
from sashimi_evaluation.feature_extraction import ClipNetwork, extract_clip_features
from tests.faults.damage import CHANGES

TAKES = ("first", "second")
"""Two folders of recordings with the same names and lengths, and different content."""
LENGTHS = (400, 300, 300)


@pytest.fixture(scope="module")
def takes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write two folders of recordings that are old enough for their time stamps to be trusted."""
    folder = tmp_path_factory.mktemp("recordings")
    random = np.random.default_rng(0)
    for take in TAKES:
        (folder / take).mkdir()
        for number, length in enumerate(LENGTHS):
            path = folder / take / f"{number}.wav"
            soundfile.write(path, random.uniform(-0.5, 0.5, length), 8000)
            os.utime(path, (time.time() - 3600,) * 2)
    return folder


def recordings(takes: Path, take: str, cache: Path) -> dict[str, Any]:
    """Return everything that the audio cache has about a take."""
    found = cached_recordings(sorted((takes / take).iterdir()), 8000, cache_dir=cache)
    samples = {str(number): values.tolist() for number, values in enumerate(found)}
    return samples | {"rms": found.rms.tolist(), "bad": found.bad, "warnings": found.warnings}


def features(takes: Path, take: str, cache: Path) -> dict[str, Any]:
    """Return everything that the feature cache has about a take."""
    network = ClipNetwork(lambda waveforms: {"features": waveforms[:, :50]}, "first samples", 8000)
    found = extract_clip_features(open_clips(takes / take), network, cache)
    return {name: values.tolist() for name, values in (found.outputs | found.properties).items()}


CACHES = {"recordings": recordings, "features": features}
FILES = [
    *[("recordings", name) for name in ("*/index.json", "*/audio.f32", "*.fingerprints.json")],
    *[("features", name) for name in ("*.npz", "*.fingerprints.json")],
]


@pytest.fixture(scope="module")
def built(takes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Fill a cache of each kind; return its folder and the fresh results by take."""
    made = {}
    for kind, use in CACHES.items():
        cache = tmp_path_factory.mktemp(kind)
        made[kind] = cache, {take: use(takes, take, cache) for take in TAKES}
    return made


class Case:
    """A copy of a filled cache, which a test damages.

    Args:
        kind: key of ``CACHES``.
        takes: the recordings.
        template: the filled cache.
        fresh: fresh results by take.
        cache: where to copy it.
        capture: the fixture capsys.
    """

    def __init__(
        self, kind: str, takes: Path, template: Path, fresh: dict[str, Any], cache: Path, capture: pytest.CaptureFixture
    ) -> None:
        self.fresh, self.cache, self._kind, self._takes, self._capture = fresh, cache, kind, takes, capture
        shutil.copytree(template, cache)

    def files(self, pattern: str) -> list[Path]:
        return sorted(self.cache.glob(pattern))

    def use(self) -> str:
        """Assert that the results for both takes are fresh ones; return what was printed on stderr."""
        self._capture.readouterr()
        for take in TAKES:
            np.testing.assert_equal(CACHES[self._kind](self._takes, take, self.cache), self.fresh[take])  # with NaN
        return self._capture.readouterr().err

    def assert_rebuilt(self, notes: int = 1) -> None:
        """Assert that using the cache prints this number of notes, and then none."""
        said = self.use()
        assert said.count("note: ") == said.count("\n") == said.count(" in the cache is damaged (") == notes, said
        assert "again" in said
        assert self.use() == ""
        assert not list(self.cache.glob(".*"))  # nothing temporary is left


@pytest.fixture
def case(built, takes: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> Callable[[str], Case]:
    return lambda kind: Case(kind, takes, *built[kind], tmp_path / "copy", capsys)


@pytest.mark.parametrize("damage", CHANGES)
@pytest.mark.parametrize(("kind", "pattern"), FILES)
def test_a_damaged_file_is_made_again(case: Callable[[str], Case], kind: str, pattern: str, damage: str) -> None:
    damaged = case(kind)
    path = damaged.files(pattern)[0]
    content = path.read_bytes()
    path.write_bytes(CHANGES[damage](content))
    assert path.read_bytes() != content
    damaged.assert_rebuilt()


@pytest.mark.parametrize(("kind", "pattern"), FILES)
def test_files_in_each_others_place_are_made_again(case: Callable[[str], Case], kind: str, pattern: str) -> None:
    damaged = case(kind)
    first, second = damaged.files(pattern)
    assert first.stat().st_size == second.stat().st_size or not pattern.endswith(".f32")
    beside = first.with_name("beside")
    first.rename(beside)
    second.rename(first)
    beside.rename(second)
    damaged.assert_rebuilt(notes=2)


@pytest.mark.parametrize(("kind", "pattern"), FILES)
def test_a_fifo_in_the_place_of_a_file_is_replaced(case: Callable[[str], Case], kind: str, pattern: str) -> None:
    damaged = case(kind)
    path = damaged.files(pattern)[0]
    path.unlink()
    os.mkfifo(path)
    damaged.assert_rebuilt()


@pytest.mark.parametrize("missing", ["index.json", "audio.f32"])
def test_an_entry_without_one_of_its_files_is_made_again(case: Callable[[str], Case], missing: str) -> None:
    damaged = case("recordings")
    damaged.files(f"*/{missing}")[0].unlink()
    damaged.assert_rebuilt()


@pytest.mark.parametrize("what", ["file", "broken link", "link to another entry", "another entry", "empty folder"])
def test_something_else_in_the_place_of_an_entry_is_replaced(case: Callable[[str], Case], what: str) -> None:
    damaged = case("recordings")
    entry, other = (path.parent for path in damaged.files("*/index.json"))
    shutil.rmtree(entry)
    if what == "file":
        entry.write_bytes(b"text")
    elif what == "another entry":
        shutil.copytree(other, entry)
    elif what == "empty folder":
        entry.mkdir()
    else:
        entry.symlink_to(other if "entry" in what else other / "nothing")
    damaged.assert_rebuilt()
    assert not entry.is_symlink()


def altered(name: str, *values: Any) -> dict[str, Callable[[dict], Any]]:
    """Return functions that replace a value of an index, by what they do."""
    return {f"{name}: {value!r:.40}": lambda index, value=value: index | {name: value} for value in values}


WRONG_INDEXES: dict[str, Callable[[dict], Any]] = {
    **{repr(value): lambda index, value=value: value for value in ([], "text", 3, True, {}, None)},
    **{
        f"without {name}": lambda index, name=name: {key: value for key, value in index.items() if key != name}
        for name in ("fingerprints", "lengths", "checksums", "rms", "bad", "warnings")
    },
    **altered("lengths", None, 3, "text", {}, [], [400, 300], [400.0, 300, 300], ["400", 300, 300], [None] * 3),
    **altered("lengths", [1300, -600, 300], [True, 699, 300], [[400], 300, 300], [10**400, 0, 0], [300, 400, 300]),
    **altered("lengths", [0, 0, 0], [0, 700, 300], [400, 300, 299], [400, 300, 301], [2**62, 2**62, 1000 - 2**63]),
    **altered("checksums", None, [], [1, 2, 3], ["1", 2, 3], [1.0, 2, 3], [None] * 3, {"0": 1}),
    **altered("rms", None, [], [0.1, 0.1], [float("nan")] * 3, [float("inf"), 0.1, 0.1], [-0.1, 0.1, 0.1], [1, 1, 1]),
    **altered("rms", ["0.1"] * 3, [True] * 3, [10**400] * 3, [[0.1]] * 3),
    **altered("bad", None, [], "text", {"3": "reason"}, {"-1": "reason"}, {"x": "reason"}, {"0": None}, {"0": ["x"]}),
    **altered("bad", {"²": "reason"}, {"1" * 5000: "reason"}, {"0.0": "reason"}, {" 1": "reason"}, {"01": "reason"}),
    **altered("warnings", None, [], 3, {"3": "text"}, {"0": 3}),
    **altered("fingerprints", None, [], ["a", "b", "c"], [1, 2, 3]),
}


@pytest.mark.parametrize("change", WRONG_INDEXES)
def test_an_index_with_wrong_values_is_made_again(case: Callable[[str], Case], change: str) -> None:
    """The checksum of the index is right: the values themselves are checked."""
    damaged = case("recordings")
    path = damaged.files("*/index.json")[0]
    write_cache_record(path, WRONG_INDEXES[change](read_cache_record(path)))
    damaged.assert_rebuilt()


@pytest.mark.parametrize("content", [b"[" * 100_000, b"", b"\xff", b"1" * 5000, b'{"lengths": [1'], ids=range(5))
@pytest.mark.parametrize(("kind", "pattern"), [("recordings", "*/index.json"), ("recordings", "*.fingerprints.json")])
def test_text_with_a_checksum_that_is_no_json(
    case: Callable[[str], Case], kind: str, pattern: str, content: bytes
) -> None:
    damaged = case(kind)
    write_cache_file(damaged.files(pattern)[0], content)
    damaged.assert_rebuilt()


ENTRY = [804, 10**18, 10**18, "0" * 32]


@pytest.mark.parametrize(
    "wrong",
    [
        *({}, "text", 3, [], [ENTRY], [ENTRY] * 4, [[]] * 3, [ENTRY[:3]] * 3, [[*ENTRY, 0]] * 3, ["text"] * 3),
        *([None] * 3, [[str(ENTRY[0]), *ENTRY[1:]]] * 3, [[float("nan"), *ENTRY[1:]]] * 3, [[*ENTRY[:3], 5]] * 3),
        *([[*ENTRY[:3], None]] * 3, [[True, *ENTRY[1:]]] * 3),
    ],
    ids=lambda value: f"{value!r:.60}",
)
def test_fingerprints_with_wrong_values_are_computed_again(case: Callable[[str], Case], wrong: Any) -> None:
    damaged = case("recordings")
    write_cache_record(damaged.files("*.fingerprints.json")[0], wrong)
    damaged.assert_rebuilt()


def archive(**arrays: Any) -> bytes:
    written = io.BytesIO()
    np.savez(written, **arrays)
    return written.getvalue()


NONE, ROWS = np.asarray("{}"), np.zeros((3, 2))
WRONG_SHARDS = {
    "no archive": b"text",
    "empty": b"",
    "no arrays": archive(),
    "no reasons": archive(**{"outputs.features": ROWS, "facts.rate": ROWS}),
    "no outputs": archive(**{"bad": NONE, "facts.rate": ROWS}),
    "no properties": archive(**{"bad": NONE, "outputs.features": ROWS}),
    "too few rows": archive(**{"bad": NONE, "outputs.features": ROWS[:2], "facts.rate": ROWS}),
    "too many rows": archive(**{"bad": np.asarray('{"0": "x"}'), "outputs.features": ROWS, "facts.rate": ROWS}),
    "no rows": archive(**{"bad": NONE, "outputs.features": np.asarray(3.0), "facts.rate": ROWS}),
    "objects": archive(**{"bad": NONE, "outputs.features": np.asarray([{}] * 3), "facts.rate": ROWS}),
    **{
        f"reasons {text:.20}": archive(
            **{"bad": np.asarray(text), "outputs.features": ROWS[:2], "facts.rate": ROWS[:2]}
        )
        for text in ("[]", "3", "{", '{"0": 3}', '{"x": "y"}', '{"3": "x"}', '{"-1": "x"}', "[" * 100_000)
    },
}


@pytest.mark.parametrize("shard", WRONG_SHARDS)
def test_features_with_wrong_values_are_computed_again(case: Callable[[str], Case], shard: str) -> None:
    damaged = case("features")
    write_cache_file(damaged.files("*.npz")[0], WRONG_SHARDS[shard])
    damaged.assert_rebuilt()


def test_replaced_recordings_with_the_old_time_stamp_are_noticed(tmp_path: Path, takes: Path) -> None:
    """Tools such as rsync and tar restore the time stamp of the content."""
    shutil.copytree(takes, tmp_path / "takes")
    before = recordings(tmp_path / "takes", "first", tmp_path / "cache")
    for path in (tmp_path / "takes" / "first").iterdir():
        shutil.copy2(tmp_path / "takes" / "second" / path.name, path)
    assert recordings(tmp_path / "takes", "first", tmp_path / "cache") != before


def _use_at_once(gate: Any, results: Any, takes: Path, cache: Path) -> None:
    gate.wait()
    results.put(recordings(takes, "first", cache))


def test_several_processes_find_the_damage_at_once(case: Callable[[str], Case], takes: Path) -> None:
    damaged = case("recordings")
    for path in damaged.files("*/audio.f32"):
        path.write_bytes(bytes(path.stat().st_size))
    context = multiprocessing.get_context("fork")
    gate, results = context.Barrier(4), context.Queue()
    workers = [context.Process(target=_use_at_once, args=(gate, results, takes, damaged.cache)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for _ in workers:
        assert results.get(timeout=60) == damaged.fresh["first"]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert len(damaged.files("*/index.json")) == 2
    assert not damaged.files(".*")


@pytest.mark.parametrize("content", [b"", b"\n", b"text", bytes(1000)], ids=len)
def test_a_file_is_read_as_it_was_written(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "name"
    assert read_cache_file(path) is None
    write_cache_file(path, content)
    assert read_cache_file(path) == content
    assert list(tmp_path.iterdir()) == [path]
