"""The audio cache: recordings are decoded and resampled once, not in every epoch, and all processes share one file.

The name of an entry (a folder) is a hash of the sample rate and of the content of the audio files, not of their paths.
An entry is renamed into place when it is complete, so several processes may build it at the same time. Its index has a
checksum of each recording. A process compares them when it opens the entry; a damaged entry is built again.
"""

import contextlib
import hashlib
import math
import os
import shutil
import stat
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import soundfile
from tqdm import tqdm

from sashimi_diffusion.cache_files import (
    DamagedCacheError,
    cache_folder,
    read_cache_record,
    say_damaged,
    write_cache_record,
)
from sashimi_diffusion.data.audio import at_rate
from sashimi_diffusion.data.decoding import AudioFileError, Decoded, decode_audio
from sashimi_diffusion.data.fingerprints import file_fingerprints, is_settled
from sashimi_diffusion.data.levels import level_warning
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.files import file_written_beside, folder_written_once, remove_abandoned, writing
from sashimi_diffusion.paths import reason
from sashimi_diffusion.terminal import printable

_FORMAT = 2  # version of the entries; increase it when decoding, resampling or the index changes
_INDEX, _AUDIO = "index.json", "audio.f32"
_SAMPLE = np.dtype("<f4")
_ATTEMPTS = 3  # to build an entry, while other processes may replace it, too

_compared: set[tuple[int, ...]] = set()
"""Status of the audio of each entry that this process has compared with its checksums."""


class Format(NamedTuple):
    """The form in which recordings are in the cache.

    Attributes:
        sample_rate: in Hz.
        source_rate: required rate of the files in Hz; files at other rates are bad. None accepts every rate.
        channels: 1 mixes the channels; a larger number is the required number of channels of the files.
    """

    sample_rate: int
    source_rate: int | None = None
    channels: int = 1


class CachedRecordings:
    """The decoded recordings of one cache entry, in the order of their files.

    ``recordings[i]`` is a read-only memory-mapped float32 view, shape (length,), or (channels, length) for more than
    one channel. Its length is 0 if file i is bad.

    Args:
        entry: folder of the cache entry.
        fingerprints: result of :func:`sashimi_diffusion.data.fingerprints.file_fingerprints` for the files.
        channels: channels of the recordings in the entry.

    Attributes:
        channels: channels of the recordings.
        sources: rate in Hz and number of channels of each file, int64, shape (files, 2); 0 for a bad file. None in an
            entry of an older version.
        fingerprints: hash of the content of each file.
        bad: position -> reason, for the files that cannot be used.
        warnings: position -> what is unusual, for files that can be used.
        rms: root mean square of each recording, float64, shape (files,).

    Raises:
        DamagedCacheError: the entry is incomplete or damaged.
    """

    def __init__(self, entry: Path, fingerprints: Sequence[str], channels: int = 1):
        index = _read_index(entry / _INDEX, fingerprints)
        self.entry, self.fingerprints, self.channels = entry, list(fingerprints), channels
        sources = index.get("sources")
        self.sources = None if sources is None else np.asarray(sources, dtype=np.int64).reshape(-1, 2)
        self.bad: dict[int, str] = {int(position): text for position, text in index["bad"].items()}
        self.warnings: dict[int, str] = {int(position): text for position, text in index["warnings"].items()}
        self.rms = np.asarray(index["rms"], dtype=np.float64)
        try:
            status = (entry / _AUDIO).stat()
            samples = sum(index["lengths"]) * channels
            if not stat.S_ISREG(status.st_mode) or status.st_size != samples * _SAMPLE.itemsize:
                raise DamagedCacheError(f"{_AUDIO} does not have the size that {_INDEX} gives")
            self._ends = np.cumsum([0, *index["lengths"]]) * channels
            self._map()
        except OSError as error:
            raise DamagedCacheError(f"{_AUDIO} cannot be read: {reason(error)}") from error
        self._compare(index["checksums"], status)

    def _map(self) -> None:
        path = self.entry / _AUDIO
        mapped = np.memmap(path, dtype=_SAMPLE, mode="r") if self._ends[-1] else np.zeros(0, dtype=_SAMPLE)
        self._samples = mapped.view(np.ndarray)

    def _compare(self, checksums: Sequence[int], status: os.stat_result) -> None:
        """Compare all samples with their checksums (0.1 s for an hour at 16 kHz), once per process."""
        file = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if file in _compared:
            return
        progress = tqdm(self, desc="Checking the audio cache", unit="file", total=len(self), delay=2)
        damaged = sum(zlib.crc32(samples.data) != wanted for samples, wanted in zip(progress, checksums, strict=True))
        if damaged:
            raise DamagedCacheError(f"{damaged} of {len(self)} recordings in {_AUDIO} are not what was written")
        if is_settled(status):
            _compared.add(file)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, position: int) -> np.ndarray:
        if not 0 <= position < len(self):
            raise IndexError(position)
        samples = self._samples[self._ends[position] : self._ends[position + 1]]
        return samples if self.channels == 1 else samples.reshape(self.channels, -1)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[position] for position in range(len(self)))

    def lengths(self) -> np.ndarray:
        """Return the number of samples of each channel of each recording, int64, shape (files,)."""
        return np.diff(self._ends) // self.channels

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes that are spawned get the path, not a copy of the audio.
        return {name: value for name, value in self.__dict__.items() if name != "_samples"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._map()


def cached_recordings(
    files: Sequence[Path],
    sample_rate: int,
    source_rate: int | None = None,
    cache_dir: Path | str | None = None,
    channels: int = 1,
) -> CachedRecordings:
    """Return decoded recordings from the cache; decode the files first if the cache does not have them.

    Args:
        files: audio files; the result has one recording for each, in this order.
        sample_rate, source_rate, channels: see :class:`Format`.
        cache_dir: folder of all entries; default :func:`sashimi_diffusion.cache_files.default_cache_dir`.

    Raises:
        UserError: the cache cannot be written, or resampling is needed and torchaudio cannot be imported.
    """
    cache = cache_folder(cache_dir)
    with writing_cache(cache):
        fingerprints = file_fingerprints(files, cache)
    form = Format(sample_rate, source_rate, channels)
    return cached_audio(fingerprints, lambda position: decode_audio(files[position], channels=channels), form, cache)


@contextlib.contextmanager
def writing_cache(cache: Path) -> Iterator[None]:
    """Create the folder of a cache; in the block, report a failure to write there as UserError."""
    advice = "free some space there, or choose another folder with cache_dir or the environment variable SASHIMI_CACHE"
    with writing(f"the audio cache {printable(cache)}", advice):
        cache.mkdir(parents=True, exist_ok=True)
        yield


def cached_audio(
    fingerprints: Sequence[str], decode: Callable[[int], Decoded], form: Format, cache: Path
) -> CachedRecordings:
    """Return decoded recordings from the cache; decode them first if the cache does not have them.

    Args:
        fingerprints: a hash of the content of each recording.
        decode: a function from the position of a recording to its audio. It raises
            :class:`sashimi_diffusion.data.decoding.AudioFileError` for one that cannot be used.
        form: the form of the result.
        cache: folder of all entries.

    Raises:
        UserError: the cache cannot be written, or resampling is needed and torchaudio cannot be imported.
    """
    with writing_cache(cache):
        entry = cache / _entry_name(fingerprints, form)
        found = _open(entry, fingerprints, form.channels)
        for _ in range(_ATTEMPTS):
            if found is not None:
                return found
            remove_abandoned(cache)
            with folder_written_once(entry) as folder:
                _decode_into(folder, fingerprints, decode, form)
                _remove_if_damaged(entry, fingerprints, form.channels)
            found = _open(entry, fingerprints, form.channels)
    if found is None:
        raise UserError(
            f"{printable(entry)} in the audio cache was damaged each time after it was written: check the disk, or "
            "choose another folder with cache_dir or the environment variable SASHIMI_CACHE"
        )
    return found


def _open(entry: Path, fingerprints: Sequence[str], channels: int) -> CachedRecordings | None:
    """Return the entry; None if it does not exist or, with a note, if it is damaged."""
    if not os.path.lexists(entry):
        return None
    try:
        return CachedRecordings(entry, fingerprints, channels)
    except DamagedCacheError as error:
        say_damaged(entry, error, "the recordings are decoded again")
        return None


def _remove_if_damaged(entry: Path, fingerprints: Sequence[str], channels: int) -> None:
    """Remove the entry, unless another process has replaced the damaged one in the meantime."""
    if not os.path.lexists(entry):
        return
    try:
        CachedRecordings(entry, fingerprints, channels)
    except DamagedCacheError:
        aside = entry.with_name(f".{entry.name}.{uuid.uuid4().hex}.tmp")
        try:
            entry.rename(aside)  # so that no other process finds a part of it
        except FileNotFoundError:  # another process did the same
            return
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside)
        else:
            aside.unlink()


def _decode_into(folder: Path, fingerprints: Sequence[str], decode: Callable[[int], Decoded], form: Format) -> None:
    """Write the audio and the index of an entry into ``folder``."""
    lengths: list[int] = []
    checksums: list[int] = []
    rms: list[float] = []
    sources: list[tuple[int, int]] = []
    bad: dict[int, str] = {}
    warnings: dict[int, str] = {}
    with file_written_beside(folder / _AUDIO) as out:
        for position in tqdm(range(len(fingerprints)), desc="Decoding audio", unit="file", delay=2):
            try:
                decoded = decode(position)
                samples = in_form(decoded, form)
                sources.append((decoded.sample_rate, decoded.channels))
                if warning := level_warning(samples):
                    warnings[position] = warning
            except AudioFileError as error:
                bad[position] = error.reason
                samples = np.zeros(0, dtype=np.float32)
                sources.append((0, 0))
            content = samples.astype(_SAMPLE).tobytes()
            out.write(content)
            lengths.append(samples.shape[-1])
            checksums.append(zlib.crc32(content))
            rms.append(rms_of(samples))
    index = {"fingerprints": list(fingerprints), "lengths": lengths, "checksums": checksums, "rms": rms}
    write_cache_record(folder / _INDEX, index | {"sources": sources, "bad": bad, "warnings": warnings})


def in_form(decoded: Decoded, form: Format) -> np.ndarray:
    """Return the samples of a decoded recording in the form of the cache.

    Raises:
        AudioFileError: the recording has another rate than the required one, or cannot be resampled.
    """
    name = "a recording"  # only the reason of an error is used
    if form.source_rate is not None and decoded.sample_rate != form.source_rate:
        raise AudioFileError(name, f"wrong sample rate ({decoded.sample_rate} Hz instead of {form.source_rate} Hz)")
    return at_rate(decoded, form.sample_rate, name)


def rms_of(samples: np.ndarray) -> float:
    """Return the root mean square of float samples of any shape; 0 if there are none."""
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if samples.size else 0.0


def _read_index(path: Path, fingerprints: Sequence[str]) -> dict[str, Any]:
    """Return an index as :func:`_decode_into` wrote it for the files with these fingerprints.

    Raises:
        DamagedCacheError: it does not exist, was changed, or has other content.
    """
    index, files = read_cache_record(path), len(fingerprints)
    if not isinstance(index, dict):
        raise DamagedCacheError(f"{path.name} is missing" if index is None else f"{path.name} is no index")
    if index.get("fingerprints") != list(fingerprints):
        raise DamagedCacheError(f"{path.name} is the index of other files")
    checks: dict[str, Callable[[Any], bool]] = {"lengths": _is_count, "checksums": _is_count, "rms": _is_level}
    for name, is_valid in checks.items():
        values = index.get(name)
        if not isinstance(values, list) or len(values) != files or not all(map(is_valid, values)):
            raise DamagedCacheError(f"the {name} in {path.name} are not those of {files} recordings")
    sources = index.get("sources", [[0, 0]] * files)  # older versions did not store them
    if not isinstance(sources, list) or len(sources) != files or not all(map(_is_source, sources)):
        raise DamagedCacheError(f"the sources in {path.name} are not those of {files} recordings")
    positions = set(map(str, range(files)))
    for name in ("bad", "warnings"):
        texts = index.get(name)
        if not isinstance(texts, dict) or not all(key in positions and type(texts[key]) is str for key in texts):
            raise DamagedCacheError(f"{name} in {path.name} has no text by position")
    return index


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_level(value: Any) -> bool:
    return type(value) is float and math.isfinite(value) and value >= 0


def _is_source(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(_is_count, value))


def _entry_name(fingerprints: Sequence[str], form: Format) -> str:
    # The result of decoding also depends on the version of the decoder.
    parts = [_FORMAT, soundfile.__libsndfile_version__, form.sample_rate, form.source_rate, *fingerprints]
    if form.channels > 1:
        parts.append(f"{form.channels} channels")
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()[:32]
