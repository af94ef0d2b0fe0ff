"""The base class of all data sets of recordings, and the checks that they share."""

import hashlib
import os
import stat
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from sashimi_diffusion.cache_files import cache_folder
from sashimi_diffusion.data.cache import CachedRecordings
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.files import write_file
from sashimi_diffusion.paths import expanded, reason, status
from sashimi_diffusion.terminal import printable

_LISTED = 20  # number of bad files that a message lists


class Recordings(Dataset):
    """Data set of fixed-length items cut from cached recordings.

    Item i is ``{"waveform": float32 tensor (1, length), "label": int}``. With ``recording, start = items[i]``, its
    waveform consists of ``length`` samples of that recording, from sample ``start`` on, padded with zeros on the right
    if the recording ends earlier. Its label is an index into ``class_names``, or -1 if there are no labels. If there
    are speakers, the item also has ``"speaker"``, an index into ``speaker_names``.

    Args:
        files: path of each recording of this split.
        clips: the cached recordings, which may contain more files.
        positions: index of each of ``files`` in ``clips``.
        items: (index into ``files``, first sample) of each item.
        labels: label of each of ``files``.
        class_names: names of the classes, or None.
        sample_rate: in Hz.
        length: samples in an item.
        normalize_rms: root mean square to which each recording is scaled (1.0 is full scale); None does not scale.
        speakers: speaker of each of ``files``, or None.
        speaker_names: names of the speakers, or None.

    Attributes:
        labels: label of each item, int64, shape (items,).
        speakers: speaker of each item, int64, shape (items,), or None.
    """

    def __init__(
        self,
        files: Sequence[Path],
        clips: CachedRecordings,
        positions: Sequence[int],
        items: Sequence[tuple[int, int]],
        labels: Sequence[int],
        class_names: list[str] | None,
        sample_rate: int,
        length: int,
        normalize_rms: float | None = None,
        speakers: Sequence[int] | None = None,
        speaker_names: list[str] | None = None,
    ) -> None:
        self.files = list(files)
        self.items = list(items)
        self.class_names, self.speaker_names = class_names, speaker_names
        self.sample_rate = sample_rate
        self.length = length
        self.normalize_rms = normalize_rms
        self.labels = self._of_items(labels)
        self.speakers = None if speakers is None else self._of_items(speakers)
        self._clips = clips
        self._positions = list(positions)

    def __len__(self) -> int:
        return len(self.items)

    def clip(self, index: int) -> np.ndarray:
        """Return the whole recording that contains item ``index``.

        Returns:
            float32, shape (samples of the recording,): a read-only view of the memory-mapped cache, or, with
            ``normalize_rms``, a scaled copy.
        """
        return self.part(index, 0, None)

    def part(self, index: int, start: int, stop: int | None) -> np.ndarray:
        """Return ``clip(index)[start:stop]`` without reading or scaling the rest of the recording."""
        recording, _ = self.items[index]
        return self._scaled(recording, slice(start, stop))

    def clip_length(self, index: int) -> int:
        """Return the number of samples in ``clip(index)`` without reading the audio."""
        recording, _ = self.items[index]
        return len(self._clips[self._positions[recording]])

    def content(self, index: int) -> str:
        """Return a hash of the content of the file that contains item ``index``."""
        recording, _ = self.items[index]
        return self._clips.fingerprints[self._positions[recording]]

    def __getitem__(self, index: int) -> dict[str, Any]:
        recording, start = self.items[index]
        samples = self._scaled(recording, slice(start, start + self.length))
        waveform = torch.zeros(1, self.length)
        waveform[0, : len(samples)] = torch.from_numpy(samples.copy())
        item = {"waveform": waveform, "label": int(self.labels[index])}
        return item if self.speakers is None else item | {"speaker": int(self.speakers[index])}

    def _of_items(self, of_recordings: Sequence[int]) -> np.ndarray:
        return np.asarray([of_recordings[recording] for recording, _ in self.items], dtype=np.int64)

    def _scaled(self, recording: int, part: slice) -> np.ndarray:
        position = self._positions[recording]
        samples = self._clips[position][part]
        rms = self._clips.rms[position]
        if self.normalize_rms is None or rms == 0:  # silence cannot be scaled
            return samples
        return samples * np.float32(self.normalize_rms / rms)

    def rms(self) -> float:
        """Return the root mean square over all items, scaled by ``normalize_rms`` and padded with zeros."""
        energy = sum(
            float(np.square(self._scaled(recording, slice(start, start + self.length)), dtype=np.float64).sum())
            for recording, start in self.items
        )
        return (energy / (len(self) * self.length)) ** 0.5


def check_request(sample_rate: int, length: int, split: str, allowed_splits: Sequence[str]) -> None:
    """Check the arguments that all data sets have.

    Args:
        sample_rate: in Hz.
        length: samples in an item.
        split: name of a split.
        allowed_splits: the splits of the data set.

    Raises:
        UserError: the split does not exist, or the sample rate or the length is not a positive integer.
    """
    if split not in allowed_splits:
        raise UserError(f"unknown split {split!r}: expected one of {', '.join(allowed_splits)}")
    for name, value in {"sample_rate": sample_rate, "length": length}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name} must be a whole number of at least 1, got {value!r}")


def require_folder(path: Path | str, what: str) -> Path:
    """Return ``path`` with ``~`` expanded.

    Args:
        path: a folder.
        what: what the folder should contain, for the error message.

    Raises:
        UserError: the path does not exist, is not a folder, or cannot be examined.
    """
    folder = expanded(path)
    found = status(folder)
    if found is None or not stat.S_ISDIR(found.st_mode):
        problem = "does not exist" if found is None else "is not a folder"
        raise UserError(f"the data folder {printable(folder)} {problem}: expected {what}")
    return folder


def report_bad_files(
    bad: Mapping[Path, str], total: int, root: Path, skip_bad_files: bool, cache_dir: Path | str | None = None
) -> None:
    """Report all files that cannot be used in one error, or in one warning if they are skipped.

    Args:
        bad: path -> reason.
        total: number of files, good and bad.
        root: folder to which the listed paths are relative.
        skip_bad_files: warn instead of raising an error, unless all files are bad.
        cache_dir: folder of the cache, in which a long list is written to a file; default
            :func:`sashimi_diffusion.cache_files.default_cache_dir`.

    Raises:
        UserError: there are bad files and they are not skipped, or all files are bad.
    """
    if not bad:
        return
    listing, separator = _listing(bad, root, cache_dir, "bad-files")
    summary = f"{len(bad)} of {total} audio files in {printable(root)} cannot be used:{listing}{separator}"
    if len(bad) == total:
        raise UserError(f"{summary}no usable file is left")
    if not skip_bad_files:
        raise UserError(
            f"{summary}repair or remove them, or skip them with skip_bad_files=True (--skip-bad-files on the command "
            "line)"
        )
    warnings.warn(f"{summary}going on without them", stacklevel=3)


def report_unusual_files(
    unusual: Mapping[Path, str], total: int, root: Path, cache_dir: Path | str | None = None
) -> None:
    """Warn about files that are used although something about them is probably a mistake.

    Args:
        unusual: path -> what is unusual, see :func:`sashimi_diffusion.data.levels.level_warning`.
        total: number of files that are used.
        root: folder to which the listed paths are relative.
        cache_dir: see :func:`report_bad_files`.
    """
    if unusual:
        listing, separator = _listing(unusual, root, cache_dir, "unusual-files")
        warnings.warn(
            f"{len(unusual)} of {total} audio files in {printable(root)} are unusual:{listing}{separator}they are used "
            "as they are",
            stacklevel=3,
        )


def _listing(reasons: Mapping[Path, str], root: Path, cache_dir: Path | str | None, name: str) -> tuple[str, str]:
    """Return the list of files for a message, and the separator after it; a long list is also written to a file."""
    lines = [f"{printable(path.relative_to(root).as_posix())}: {why}" for path, why in reasons.items()]
    if len(lines) == 1:
        return f" {lines[0]}", "; "
    shown = lines[:_LISTED]
    if len(lines) > _LISTED:
        shown.append(f"and {len(lines) - _LISTED} more; {_written(lines, root, cache_dir, name)}")
    return "\n  " + "\n  ".join(shown), "\n"


def _written(lines: Sequence[str], root: Path, cache_dir: Path | str | None, name: str) -> str:
    """Write a list to a file, in a temporary folder if it cannot be in the cache; return a text that says where."""
    content = "".join(f"{line}\n" for line in lines).encode()
    path = cache_folder(cache_dir) / name / f"{hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:16]}.txt"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, content)
    except OSError:
        try:
            descriptor, temporary = tempfile.mkstemp(prefix=f"sashimi-{name}-", suffix=".txt")
            with open(descriptor, "wb") as file:
                file.write(content)
        except OSError as error:
            return f"the list of all cannot be written ({reason(error)})"
        path = Path(temporary)
    return f"all are listed in {printable(path)}"
