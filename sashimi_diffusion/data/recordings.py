"""What every data set of recordings is: cached clips, labels, fixed-length items, and one message for all bad files."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import Dataset

from sashimi_diffusion.data.cache import CachedRecordings
from sashimi_diffusion.errors import UserError

_LISTED = 20  # bad files named in a message


class Recordings(Dataset):
    """Fixed-length items cut from cached recordings.

    Item i is ``{"waveform": float32 tensor (1, length), "label": int}``: ``length`` samples of recording
    ``items[i][0]`` from sample ``items[i][1]`` on, padded with zeros on the right where the recording ends earlier.
    The label is an index into ``class_names``, or -1 where the data have no labels. Where the data say who speaks,
    ``"speaker"`` is an index into ``speaker_names``.

    Attributes:
        files: path of each recording of this split, in the order of the recordings.
        items: (recording, first sample) of each item.
        labels: label of each item, int64 array, shape (items,).
        class_names: list of str, or None.
        speakers: speaker of each item, int64 array, shape (items,), or None.
        speaker_names: list of str, or None.
        sample_rate: in Hz.
        length: samples in an item.
        normalize_rms: the root mean square every recording is scaled to (1.0 is full scale), or None for as recorded.
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
    ):
        """``positions``, ``labels``, ``speakers``: where in ``clips`` each of ``files`` is, its class, its speaker."""
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
        """The whole recording that item ``index`` is cut from, as a random crop wants it.

        Returns:
            float32, shape (samples of the recording,): a read-only view of the memory-mapped cache, or, with
            ``normalize_rms``, a scaled copy of it.
        """
        return self.part(index, 0, None)

    def part(self, index: int, start: int, stop: int | None) -> np.ndarray:
        """``clip(index)[start:stop]``, without touching or scaling the rest of a long recording."""
        recording, _ = self.items[index]
        return self._scaled(recording, slice(start, stop))

    def clip_length(self, index: int) -> int:
        """Samples in ``clip(index)``, without touching the audio."""
        recording, _ = self.items[index]
        return len(self._clips[self._positions[recording]])

    def __getitem__(self, index: int) -> dict[str, torch.Tensor | int]:
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
        if self.normalize_rms is None or rms == 0:  # silence stays silence
            return samples
        return samples * np.float32(self.normalize_rms / rms)

    def rms(self) -> float:
        """Root mean square over all items as they are delivered, zero padding included."""
        energy = sum(
            float(np.square(self._scaled(recording, slice(start, start + self.length)), dtype=np.float64).sum())
            for recording, start in self.items
        )
        return (energy / (len(self) * self.length)) ** 0.5


def check_request(sample_rate: int, length: int, split: str, allowed_splits: Sequence[str]) -> None:
    """Refuses sizes and names of splits that cannot be meant.

    Raises:
        UserError: naming the value and what is allowed.
    """
    if split not in allowed_splits:
        raise UserError(f"unknown split {split!r}: expected one of {', '.join(allowed_splits)}")
    for name, value in {"sample_rate": sample_rate, "length": length}.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise UserError(f"{name} must be a whole number of at least 1, got {value!r}")


def require_folder(path: Path | str, what: str) -> Path:
    """``path`` with ``~`` expanded, if it is a folder.

    Raises:
        UserError: it does not exist or is not a folder; the text says what was expected there.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise UserError(f"the data folder {folder} {problem}: expected {what}")
    return folder


def report_bad_files(bad: Mapping[Path, str], total: int, root: Path, skip_bad_files: bool) -> None:
    """Names all files that cannot be used with their reasons: as an error, or as a warning if they may be skipped.

    Args:
        bad: reason by path.
        total: how many files there are, good and bad.
        root: folder the paths are shown relative to.
        skip_bad_files: warn instead of raising, unless no good file would be left.

    Raises:
        UserError: there are bad files and they may not be skipped, or all files are bad.
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
            f"{summary}{separator}repair or remove them, or go on without them with skip_bad_files=True "
            "(--skip-bad-files on the command line)"
        )
    warnings.warn(f"{summary}{separator}going on without them", stacklevel=3)
