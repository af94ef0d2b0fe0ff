"""The audio cache: recordings are decoded and resampled once, not in every epoch, and all processes share one file.

The name of an entry (a folder) is a hash of the sample rate and of the content of the audio files, not of their paths.
An entry is renamed into place when it is complete, so several processes may build it at the same time.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from tqdm import tqdm

from sashimi_diffusion.data.audio import AudioFileError, read_audio
from sashimi_diffusion.data.levels import level_warning
from sashimi_diffusion.files import file_written_beside, folder_written_once, remove_abandoned, write_file, writing

_FORMAT = 2  # version of the entries; increase it when decoding or resampling changes
_SAMPLE_BYTES = np.dtype("<f4").itemsize
_SETTLED_NS = 2 * 10**9  # a file that was changed more recently may change again without a new time stamp


def default_cache_dir() -> Path:
    """Return the folder of the cache.

    It is ``$SASHIMI_CACHE`` if this variable is set, otherwise ``$XDG_CACHE_HOME/sashimi-diffusion`` if that variable
    is set, otherwise ``~/.cache/sashimi-diffusion``.
    """
    user_cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("SASHIMI_CACHE") or Path(user_cache, "sashimi-diffusion")).expanduser()


class CachedRecordings:
    """The decoded recordings of one cache entry, in the order of their files.

    ``recordings[i]`` is a read-only memory-mapped float32 view, shape (length,). Its length is 0 if file i is bad.

    Args:
        entry: folder of the cache entry.

    Attributes:
        bad: position -> reason, for the files that cannot be used.
        warnings: position -> what is unusual, for files that can be used.
        rms: root mean square of each recording, float64, shape (files,).

    Raises:
        OSError, ValueError, KeyError: the entry is incomplete or damaged.
    """

    def __init__(self, entry: Path):
        index = json.loads((entry / "index.json").read_text())
        self.entry = entry
        self.bad: dict[int, str] = {int(position): reason for position, reason in index["bad"].items()}
        self.warnings: dict[int, str] = {int(position): text for position, text in index["warnings"].items()}
        self.rms = np.asarray(index["rms"], dtype=np.float64)
        self._ends = np.cumsum([0, *index["lengths"]])
        self._map()

    def _map(self) -> None:
        path = self.entry / "audio.f32"
        if path.stat().st_size != self._ends[-1] * _SAMPLE_BYTES:
            raise ValueError(f"{path} does not have the size that index.json gives")
        mapped = np.memmap(path, dtype="<f4", mode="r") if self._ends[-1] else np.zeros(0, dtype="<f4")
        self._samples = mapped.view(np.ndarray)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, position: int) -> np.ndarray:
        if not 0 <= position < len(self):
            raise IndexError(position)
        return self._samples[self._ends[position] : self._ends[position + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[position] for position in range(len(self)))

    def lengths(self) -> np.ndarray:
        """Return the number of samples in each recording, int64, shape (files,)."""
        return np.diff(self._ends)

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes that are spawned get the path, not a copy of the audio.
        return {name: value for name, value in self.__dict__.items() if name != "_samples"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()


def cached_recordings(
    files: Sequence[Path], sample_rate: int, source_rate: int | None = None, cache_dir: Path | str | None = None
) -> CachedRecordings:
    """Return decoded recordings from the cache; decode the files first if the cache does not have them.

    Args:
        files: audio files; the result has one recording for each, in this order.
        sample_rate: rate of the result in Hz.
        source_rate: required rate of the files in Hz; files at other rates are bad. None accepts every rate.
        cache_dir: folder of all entries; default :func:`default_cache_dir`.

    Raises:
        UserError: the cache cannot be written, or resampling is needed and torchaudio cannot be imported.
    """
    cache = Path(cache_dir).expanduser() if cache_dir is not None else default_cache_dir()
    advice = "free some space there, or choose another folder with cache_dir or the environment variable SASHIMI_CACHE"
    with writing(f"the audio cache {cache}", advice):
        cache.mkdir(parents=True, exist_ok=True)
        entry = cache / _entry_name(file_fingerprints(files, cache), sample_rate, source_rate)
        found = _open(entry)
        if found is not None:
            return found
        remove_abandoned(cache)
        with folder_written_once(entry) as folder:
            _decode_into(folder, files, sample_rate, source_rate)
            if entry.is_dir() and _open(entry) is None:  # damaged, not finished by another process in the meantime
                shutil.rmtree(entry)
        return CachedRecordings(entry)


def _open(entry: Path) -> CachedRecordings | None:
    """Return the entry; None if it does not exist or is damaged."""
    if not entry.is_dir():
        return None
    try:
        return CachedRecordings(entry)
    except (OSError, ValueError, KeyError):
        return None


def _decode_into(folder: Path, files: Sequence[Path], sample_rate: int, source_rate: int | None) -> None:
    """Write ``audio.f32`` and ``index.json`` into ``folder``."""
    lengths: list[int] = []
    rms: list[float] = []
    bad: dict[int, str] = {}
    warnings: dict[int, str] = {}
    with file_written_beside(folder / "audio.f32") as out:
        for position, path in enumerate(tqdm(files, desc="Decoding audio", unit="file", delay=2)):
            try:
                samples = read_audio(path, sample_rate, source_rate)
                if warning := level_warning(samples):
                    warnings[position] = warning
            except AudioFileError as error:
                bad[position] = error.reason
                samples = np.zeros(0, dtype=np.float32)
            out.write(samples.astype("<f4").tobytes())
            lengths.append(len(samples))
            rms.append(float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if len(samples) else 0.0)
    index = {"lengths": lengths, "rms": rms, "bad": bad, "warnings": warnings}
    write_file(folder / "index.json", json.dumps(index).encode())


def _entry_name(fingerprints: Sequence[str], sample_rate: int, source_rate: int | None) -> str:
    # The result of decoding also depends on the version of the decoder.
    parts = [_FORMAT, soundfile.__libsndfile_version__, sample_rate, source_rate, *fingerprints]
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:32]


def file_fingerprints(files: Sequence[Path], cache: Path) -> list[str]:
    """Return a hash of the content of each file, in the order of ``files``.

    The hashes are stored in ``cache``. A file is read again only if its size or its time stamp has changed. For a file
    that cannot be read, the result is the reason instead of a hash.

    Args:
        files: the files.
        cache: an existing folder.
    """
    names = "\n".join(str(path.absolute()) for path in files)
    memo_path = cache / f"{hashlib.sha256(os.fsencode(names)).hexdigest()[:32]}.fingerprints.json"
    try:
        memo = json.loads(memo_path.read_text())
    except (OSError, ValueError):
        memo = []  # absent or damaged: all files are read again
    known = memo if len(memo) == len(files) else [None] * len(files)
    progress = tqdm(files, desc="Checking audio files", unit="file", delay=2)
    entries = [_fingerprint(path, before) for path, before in zip(progress, known, strict=True)]
    if entries != memo:
        write_file(memo_path, json.dumps(entries).encode())
    return [entry[2] for entry in entries]


def _fingerprint(path: Path, before: list[Any] | None) -> list[Any]:
    """Return [size, time stamp, hash] of a file.

    The time stamp is 0, which matches no file, if the file was changed so recently that it may change again without a
    new time stamp.

    Args:
        path: the file.
        before: an earlier result, or None.
    """
    try:
        status = path.stat()
        settled = time.time_ns() - status.st_mtime_ns > _SETTLED_NS
        if before is not None and before[:2] == [status.st_size, status.st_mtime_ns]:
            return before
        digest = hashlib.blake2b(digest_size=16)
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        return [0, 0, f"unreadable: {error.strerror}"]
    return [status.st_size, status.st_mtime_ns if settled else 0, digest.hexdigest()]
