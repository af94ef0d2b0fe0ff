"""The base class of all data sets of recordings, and the checks that they share."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from sashimi_diffusion.data.cache import CachedRecordings
from sashimi_diffusion.errors import UserError

_LISTED = 20  # number of bad files that a message lists


class Recordings(Dataset):
    """Data set of fixed-length items cut from cached recordings.

    Item i is ``{"waveform": float32 tensor (1, length), "label": int}``. Its waveform is ``length`` samples of the
    recording ``items[i][0]`` from sample ``items[i][1]`` on, padded with zeros on the right if the recording ends
    earlier. Its label is an index into ``class_names``, or -1 if there are no labels. If there are speakers, the item
    also has ``"speaker"``, an index into ``speaker_names``.

    Args:
        files: path of each recording of this split.
        clips: the cached recordings, which may contain more files.
        positions: index of each of ``files`` in ``clips``.
        items: (recording, first sample) of each item.
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
        """Return the root mean square over all items, including zero padding and scaling."""
        energy = sum(
            float(np.square(self._scaled(recording, slice(start, start + self.length)), dtype=np.float64).sum())
            for recording, start in self.items
        )
        return (energy / (len(self) * self.length)) ** 0.5


def check_request(sample_rate: int, length: int, split: str, allowed_splits: Sequence[str]) -> None:
    """Raise UserError if the split does not exist, or if the sample rate or the length is not a positive integer."""
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
        UserError: the path does not exist or is not a folder.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise UserError(f"the data folder {folder} {problem}: expected {what}")
    return folder


def report_bad_files(bad: Mapping[Path, str], total: int, root: Path, skip_bad_files: bool) -> None:
    """List all files that cannot be used, with their reasons, in one error, or in one warning if they are skipped.

    Args:
        bad: path -> reason.
        total: number of files, good and bad.
        root: folder to which the listed paths are relative.
        skip_bad_files: warn instead of raising an error, unless all files are bad.

    Raises:
        UserError: there are bad files and they are not skipped, or all files are bad.
    """
    if not bad:
        return
    lines = [f"{path.relative_to(root).as_posix()}: {reason}" for path, reason in bad.items()]
    if len(lines) > _LISTED:
        lines[_LISTED:] = [f"and {len(lines) - _LISTED} more"]
    listing = f" {lines[0]}" if len(lines) == 1 else "\n  " + "\n  ".join(lines)
    summary = f"{len(bad)} of {total} audio files in {root} cannot be used:{listing}"
    separator = "; " if len(lines) == 1 else "\n"
    if len(bad) == total:
        raise UserError(f"{summary}{separator}no usable file is left")
    if not skip_bad_files:
        raise UserError(
            f"{summary}{separator}repair or remove them, or skip them with skip_bad_files=True "
            "(--skip-bad-files on the command line)"
        )
    warnings.warn(f"{summary}{separator}going on without them", stacklevel=3)
