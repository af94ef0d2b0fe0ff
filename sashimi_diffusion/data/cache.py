"""Recordings decoded once: one flat float32 file per set of recordings, memory-mapped from then on.

A cache entry is a folder named after the content of the audio files (not their names or places) and the sample rate.
It is written beside and renamed when complete, so that an entry that exists is whole, whoever else writes it too.
"""

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from sashimi_diffusion.data.audio import AudioFileError, read_audio
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.files import write_file

_FORMAT = 1  # of the entries; raise it when decoding or resampling changes
_SAMPLE_BYTES = np.dtype("<f4").itemsize
_UNTOUCHED_NS = 2 * 10**9  # a file changed less long ago may change again without a new time stamp
_ABANDONED_SECONDS = 6 * 3600


def default_cache_dir() -> Path:
    """``$SASHIMI_CACHE``; if not set ``$XDG_CACHE_HOME/sashimi-diffusion``, or ``~/.cache/sashimi-diffusion``."""
    user_cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("SASHIMI_CACHE") or Path(user_cache, "sashimi-diffusion")).expanduser()


class CachedRecordings(Sequence):
    """The decoded recordings of one cache entry, in the order of the files it was asked for.

    ``recordings[i]`` is a read-only memory-mapped float32 view, shape (length,); of length 0 where file i is bad.

    Attributes:
        bad: reason by position, for the files that cannot be used.
        rms: root mean square of each recording, float64, shape (files,).
    """

    def __init__(self, entry: Path):
        index = json.loads((entry / "index.json").read_text())
        self.entry = entry
        self.bad: dict[int, str] = {int(position): reason for position, reason in index["bad"].items()}
        self.rms = np.asarray(index["rms"], dtype=np.float64)
        self._ends = np.cumsum([0, *index["lengths"]])
        self._map()

    def _map(self) -> None:
        path = self.entry / "audio.f32"
        if path.stat().st_size != self._ends[-1] * _SAMPLE_BYTES:
            raise ValueError(f"{path} does not have the size its index says")
        mapped = np.memmap(path, dtype="<f4", mode="r") if self._ends[-1] else np.zeros(0, dtype="<f4")
        self._samples = mapped.view(np.ndarray)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, position: int) -> np.ndarray:
        if not 0 <= position < len(self):
            raise IndexError(position)
        return self._samples[self._ends[position] : self._ends[position + 1]]

    def lengths(self) -> np.ndarray:
        """Samples in each recording, int64, shape (files,)."""
        return np.diff(self._ends)

    def __getstate__(self) -> dict:
        # Worker processes that are spawned get the path, not a copy of all the audio.
        return {name: value for name, value in self.__dict__.items() if name != "_samples"}

    def __setstate__(self, state: dict) -> None:
        self.__dict__.update(state)
        self._map()


def cached_recordings(
    files: Sequence[Path], sample_rate: int, source_rate: int | None = None, cache_dir: Path | str | None = None
) -> CachedRecordings:
    """The decoded form of ``files``: from the cache, or decoded now and kept there.

    Args:
        files: audio files; the result has one recording for each, in this order.
        sample_rate: rate of the result in Hz.
        source_rate: when given, files at any other rate in Hz are bad.
        cache_dir: the folder of all entries; default `default_cache_dir`.

    Raises:
        UserError: the cache cannot be written, or resampling is needed and torchaudio cannot be imported.
    """
    cache = Path(cache_dir).expanduser() if cache_dir is not None else default_cache_dir()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        entry = cache / _entry_name(file_fingerprints(files, cache), sample_rate, source_rate)
        found = _open(entry)
        if found is not None:
            return found
        _build(entry, files, sample_rate, source_rate)
    except OSError as error:
        raise UserError(
            f"cannot write the audio cache {cache}: {error.strerror or error}. Free some space there, "
            "or choose another folder with cache_dir or the environment variable SASHIMI_CACHE."
        ) from error
    return CachedRecordings(entry)


def _open(entry: Path) -> CachedRecordings | None:
    """The entry, or None where it is absent or was damaged after it had been written."""
    if not entry.is_dir():
        return None
    try:
        return CachedRecordings(entry)
    except (OSError, ValueError, KeyError):
        return None


def _build(entry: Path, files: Sequence[Path], sample_rate: int, source_rate: int | None) -> None:
    _remove_abandoned(entry.parent)
    unfinished = entry.with_name(f"{entry.name}.{uuid.uuid4().hex}.part")
    unfinished.mkdir()
    try:
        _decode_into(unfinished, files, sample_rate, source_rate)
        if entry.is_dir() and _open(entry) is None:
            shutil.rmtree(entry)
        if _open(entry) is None:
            try:
                unfinished.rename(entry)
            except OSError:
                if _open(entry) is None:  # else another process was quicker, with the same content
                    raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _decode_into(folder: Path, files: Sequence[Path], sample_rate: int, source_rate: int | None) -> None:
    lengths, rms, bad = [], [], {}
    with (folder / "audio.f32").open("wb") as out:
        for position, path in enumerate(tqdm(files, desc="Decoding audio", unit="file", delay=2)):
            try:
                samples = read_audio(path, sample_rate, source_rate)
            except AudioFileError as error:
                bad[position] = error.reason
                samples = np.zeros(0, dtype=np.float32)
            out.write(samples.astype("<f4").tobytes())
            lengths.append(len(samples))
            rms.append(float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if len(samples) else 0.0)
        out.flush()
        os.fsync(out.fileno())
    (folder / "index.json").write_text(json.dumps({"lengths": lengths, "rms": rms, "bad": bad}))


def _remove_abandoned(cache: Path) -> None:
    """Deletes what killed processes left half-written."""
    for folder in cache.glob("*.part"):
        try:
            newest = max(path.stat().st_mtime for path in [folder, *folder.glob("*")])
        except FileNotFoundError:  # its owner has just finished
            continue
        if time.time() - newest > _ABANDONED_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def _entry_name(fingerprints: Sequence[str], sample_rate: int, source_rate: int | None) -> str:
    # What a file decodes to, and whether it does, also depends on the library that decodes it.
    parts = [_FORMAT, soundfile.__libsndfile_version__, sample_rate, source_rate, *fingerprints]
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:32]


def file_fingerprints(files: Sequence[Path], cache: Path) -> list[str]:
    """A hash of each file's bytes; of a file whose size and time stamp have not changed, the hash of last time.

    Args:
        files: in any order, which the result follows; one that cannot be read gets a text that says so.
        cache: an existing folder in which the hashes are kept.
    """
    names = "\n".join(str(path.absolute()) for path in files)
    memo_path = cache / f"{hashlib.sha256(names.encode()).hexdigest()[:32]}.fingerprints.json"
    try:
        memo = json.loads(memo_path.read_text())
    except (OSError, ValueError):
        memo = []  # absent or damaged: it only saves time
    known = memo if len(memo) == len(files) else [None] * len(files)
    progress = tqdm(files, desc="Checking audio files", unit="file", delay=2)
    entries = [_fingerprint(path, before) for path, before in zip(progress, known, strict=True)]
    if entries != memo:
        write_file(memo_path, json.dumps(entries).encode())
    return [entry[2] for entry in entries]


def _fingerprint(path: Path, before: list | None) -> list:
    """[size, time stamp, hash]; the time stamp is 0 where it cannot be relied on."""
    try:
        status = path.stat()
        settled = time.time_ns() - status.st_mtime_ns > _UNTOUCHED_NS
        if before is not None and before[:2] == [status.st_size, status.st_mtime_ns]:
            return before
        digest = hashlib.blake2b(digest_size=16)
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        return [0, 0, f"unreadable: {error.strerror}"]
    return [status.st_size, status.st_mtime_ns if settled else 0, digest.hexdigest()]
