"""Tests of the cache of decoded audio: keys, damaged entries and concurrent processes."""

import hashlib
import itertools
import multiprocessing
import os
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sashimi_diffusion.cache_files import default_cache_dir, read_cache_record, write_cache_record
from sashimi_diffusion.data import cache as cache_module
from sashimi_diffusion.data.cache import cached_recordings
from sashimi_diffusion.errors import UserError


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Return a list to which every decoded file is added."""
    seen = []
    real = cache_module.decode_audio

    def count(path, **arguments):
        seen.append(path)
        return real(path, **arguments)

    monkeypatch.setattr(cache_module, "decode_audio", count)
    return seen


@pytest.fixture
def files(tmp_path: Path, record) -> list[Path]:
    paths = [tmp_path / "audio" / f"{number}.wav" for number in range(4)]
    for number, path in enumerate(paths):
        record(path, 100 + number)
    return paths


def entries(cache_dir: Path) -> list[Path]:
    return [path for path in cache_dir.iterdir() if path.is_dir()]


def test_recordings_are_memory_mapped_views(files: list[Path], record):
    recordings = cached_recordings(files, 16000)
    assert len(recordings) == 4
    assert recordings.lengths().tolist() == [100, 101, 102, 103]
    for path, samples in zip(files, recordings, strict=True):
        expected = record(path, len(samples))
        np.testing.assert_array_equal(samples, expected)
        assert isinstance(samples.base, np.memmap) or isinstance(samples.base.base, np.memmap)
        assert not samples.flags.writeable
    np.testing.assert_allclose(recordings.rms, [np.sqrt(np.mean(np.float64(s) ** 2)) for s in recordings])


def test_a_file_is_decoded_once(files: list[Path], decoded: list[Path], cache_dir: Path):
    first = cached_recordings(files, 16000)
    for _ in range(2):
        [samples.sum() for samples in first]
    assert decoded == files
    second = cached_recordings(files, 16000)
    assert decoded == files
    assert len(entries(cache_dir)) == 1
    for ours, theirs in zip(first, second, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_key_is_the_content_not_the_path(files: list[Path], decoded: list[Path], tmp_path: Path):
    cached_recordings(files, 16000)
    moved = shutil.copytree(tmp_path / "audio", tmp_path / "elsewhere")
    cached_recordings([moved / path.name for path in files], 16000)
    assert len(decoded) == 4


def test_changed_content_is_decoded_again(files: list[Path], decoded: list[Path], record):
    cached_recordings(files, 16000)
    expected = record(files[0].with_name("other.wav"), 100)  # same size, possibly the same modification time
    files[0].with_name("other.wav").replace(files[0])
    np.testing.assert_array_equal(cached_recordings(files, 16000)[0], expected)
    assert len(decoded) == 8


def test_unchanged_files_are_not_read_again(files: list[Path], monkeypatch: pytest.MonkeyPatch):
    long_ago = time.time() - 3600
    for path in files:
        os.utime(path, (long_ago, long_ago))
    cached_recordings(files, 16000)
    monkeypatch.setattr(cache_module.hashlib, "blake2b", None)
    assert len(cached_recordings(files, 16000)) == 4


def test_each_source_rate_has_its_own_entry(files: list[Path], cache_dir: Path):
    assert not cached_recordings(files, 16000).bad
    assert len(cached_recordings(files, 16000, source_rate=8000).bad) == 4
    assert len(entries(cache_dir)) == 2


def test_bad_files_are_cached_with_their_reasons(files: list[Path], decoded: list[Path]):
    files[1].write_text("not audio")
    files[2].unlink()
    for _ in range(2):
        recordings = cached_recordings(files, 16000)
        assert sorted(recordings.bad) == [1, 2]
        assert "not audio" in recordings.bad[1]
        assert "unreadable" in recordings.bad[2]
        assert recordings.lengths().tolist() == [100, 0, 0, 103]
    assert len(decoded) == 4


def test_only_bad_files(files: list[Path]):
    files[0].write_text("not audio")
    assert len(cached_recordings(files[:1], 16000)[0]) == 0


@pytest.mark.parametrize("damage", ["truncated", "no index", "broken index", "no audio"])
def test_a_damaged_entry_is_rebuilt(files: list[Path], cache_dir: Path, record, damage: str):
    cached_recordings(files, 16000)
    (entry,) = entries(cache_dir)
    if damage == "truncated":
        os.truncate(entry / "audio.f32", 100)
    elif damage == "no index":
        (entry / "index.json").unlink()
    elif damage == "broken index":
        (entry / "index.json").write_text('{"lengths": [1')
    else:
        (entry / "audio.f32").unlink()
    np.testing.assert_array_equal(cached_recordings(files, 16000)[3], record(files[3], 103))


def test_damaged_fingerprints_are_recomputed(files: list[Path], cache_dir: Path):
    cached_recordings(files, 16000)
    (fingerprints,) = cache_dir.glob("*.json")
    fingerprints.write_text("[[1")
    assert len(cached_recordings(files, 16000)) == 4


def test_pickled_recordings_contain_no_audio(tmp_path: Path, record):
    record(tmp_path / "long.wav", 100_000)
    recordings = cached_recordings([tmp_path / "long.wav"], 16000)
    pickled = pickle.dumps(recordings)
    assert len(pickled) < 5000
    np.testing.assert_array_equal(pickle.loads(pickled)[0], recordings[0])


def _build_at_once(files, cache_dir, gate, results):
    gate.wait()
    recordings = cached_recordings(files, 16000, cache_dir=cache_dir)
    results.put([samples.tobytes() for samples in recordings])


def test_concurrent_processes_build_one_entry(tmp_path: Path, cache_dir: Path, record):
    paths = [tmp_path / "audio" / f"{number}.wav" for number in range(200)]
    expected = [record(path, 2000).tobytes() for path in paths]
    context = multiprocessing.get_context("fork")  # starts fast, so that the processes run at the same time
    gate, results = context.Barrier(4), context.Queue()
    workers = [context.Process(target=_build_at_once, args=(paths, cache_dir, gate, results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for _ in workers:
        assert results.get(timeout=60) == expected
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert len(entries(cache_dir)) == 1  # no incomplete entry is left


def test_a_failure_leaves_no_incomplete_entry(files: list[Path], cache_dir: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(path, **arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_module, "decode_audio", fail)
    with pytest.raises(UserError, match=r"cannot write the audio cache .*: the disk is full; .*SASHIMI_CACHE"):
        cached_recordings(files, 16000)
    assert entries(cache_dir) == []


def test_temporary_files_of_killed_processes_are_removed_later(files: list[Path], cache_dir: Path):
    abandoned, active = cache_dir / ".old.1.tmp", cache_dir / ".new.2.tmp"
    abandoned_file, other = cache_dir / ".old.json.3.tmp", cache_dir / "old.json"
    for folder in (abandoned, active):
        folder.mkdir(parents=True)
        (folder / "audio.f32").touch()
    long_ago = time.time() - 48 * 3600
    os.utime(abandoned / "audio.f32", (long_ago, long_ago))
    os.utime(abandoned, (long_ago, long_ago))
    os.utime(active, (long_ago, long_ago))
    for file in (abandoned_file, other):
        file.touch()
        os.utime(file, (long_ago, long_ago))
    cached_recordings(files, 16000)
    assert not abandoned.exists()
    assert not abandoned_file.exists()
    assert active.exists()
    assert other.exists()


def test_a_cache_that_cannot_be_written(files: list[Path], tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write the audio cache"):
        cached_recordings(files, 16000, cache_dir=tmp_path / "file" / "cache")


def test_location_of_the_default_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("SASHIMI_CACHE", str(tmp_path))
    assert default_cache_dir() == tmp_path
    monkeypatch.delenv("SASHIMI_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert default_cache_dir() == tmp_path / "user" / "sashimi-diffusion"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache_dir() == Path.home() / ".cache" / "sashimi-diffusion"


def test_warnings_about_levels_are_cached(files: list[Path], decoded: list[Path]):
    soundfile.write(files[1], np.zeros(50), 16000)
    for _ in range(2):
        recordings = cached_recordings(files, 16000)
        assert recordings.warnings == {1: "silent (all samples are 0)"}
        assert not recordings.bad
    assert len(decoded) == 4


def test_a_cache_of_a_user_who_does_not_exist(files: list[Path], monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(UserError, match=r"cannot use ~nobody-here/cache: "):
        cached_recordings(files, 16000, cache_dir="~nobody-here/cache")
    monkeypatch.setenv("SASHIMI_CACHE", "~nobody-here/cache")
    with pytest.raises(UserError, match=r"cannot use ~nobody-here/cache: "):
        cached_recordings(files, 16000)


def test_an_entry_that_is_damaged_again_each_time(files: list[Path], monkeypatch: pytest.MonkeyPatch, capsys):
    numbers = itertools.count()
    monkeypatch.setattr(cache_module.zlib, "crc32", lambda _: next(numbers))
    with pytest.raises(UserError, match=r"was damaged each time after it was written: check the disk"):
        cached_recordings(files, 16000)
    assert capsys.readouterr().err.count("4 of 4 recordings in audio.f32 are not what was written") == 3


def test_channels_are_stored(tmp_path: Path, record, cache_dir: Path):
    paths = [tmp_path / "audio" / name for name in ("a.wav", "b.wav", "mono.wav")]
    noise = [record(path, 100 + 10 * i, channels=2 if i < 2 else 1) for i, path in enumerate(paths)]
    for _ in range(2):  # the second time from the cache
        recordings = cached_recordings(paths, 16000, channels=2)
        assert recordings.lengths().tolist() == [100, 110, 0]
        assert recordings.bad == {2: "1 channel instead of 2"}
        assert recordings.sources.tolist() == [[16000, 2], [16000, 2], [0, 0]]
        for expected, samples in zip(noise[:2], recordings, strict=False):
            np.testing.assert_array_equal(samples, expected.T)
    assert recordings.rms[0] == pytest.approx(np.sqrt(np.mean(np.float64(noise[0]) ** 2)))
    mixed = cached_recordings(paths, 16000)
    np.testing.assert_array_equal(mixed[0], noise[0].mean(axis=1))
    assert len(entries(cache_dir)) == 2


def test_an_entry_of_an_older_version_is_used(files: list[Path], decoded: list[Path], cache_dir: Path):
    """Older versions did not store the rates and channels of the files."""
    before = [samples.copy() for samples in cached_recordings(files, 16000)]
    (entry,) = entries(cache_dir)
    index = read_cache_record(entry / "index.json")
    assert index.pop("sources") == [[16000, 1]] * 4
    write_cache_record(entry / "index.json", index)
    after = cached_recordings(files, 16000)
    assert len(decoded) == 4
    assert after.sources is None
    assert all(map(np.array_equal, before, after))


def test_the_name_of_an_entry_is_that_of_older_versions() -> None:
    form = cache_module.Format(16000, None)
    parts = [2, soundfile.__libsndfile_version__, 16000, None, "a", "b"]
    older = hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:32]
    assert cache_module._entry_name(["a", "b"], form) == older
    assert cache_module._entry_name(["a", "b"], form._replace(channels=2)) != older
