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
from sashimi_diffusion.data.names import is_text
from sashimi_diffusion.data.partition import Part
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.files import write_file
from sashimi_diffusion.paths import expanded, reason, status
from sashimi_diffusion.terminal import printable

_LISTED = 20  # number of bad files that a message lists


class Recordings(Dataset):
    """Base class of data sets of fixed-length items cut from recordings.

    Item i is ``{"waveform": float32 tensor (channels, length), "label": int}``. With ``recording, start = items[i]``,
    its waveform consists of ``length`` samples of that recording, from sample ``start`` on, padded with zeros on the
    right if the recording ends earlier. Its label is an index into ``class_names``, or -1 if there are no labels. If
    there are speakers, the item also has ``"speaker"``, an index into ``speaker_names``.

    A subclass implements :meth:`load` and :meth:`fingerprint`.

    Args:
        items: (index of the recording, first sample) of each item.
        labels: label of each item, int64, shape (items,).
        sample_rate: in Hz.
        length: samples in an item.
        channels: channels of an item.
        normalize_rms: root mean square to which each recording is scaled (1.0 is full scale); None does not scale.
        class_names: names of the classes, or None.
        speakers: speaker of each item, int64, shape (items,), or None.
        speaker_names: names of the speakers, or None.

    Raises:
        UserError: a name is no valid text.

    Attributes:
        groups: numbers of consecutive items that are best read one after another, such as those of a tar file; None if
            any order is as good.
        shuffle_buffer: number of items among which the training order of ``groups`` is shuffled.
        changes: what reading changes, for example "3 of 4 recordings are resampled from 44100 Hz to 16000 Hz"; empty if
            nothing, or not known.
    """

    changes = ""
    groups: Sequence[int] | None = None
    shuffle_buffer = 1

    def __init__(
        self,
        items: Sequence[tuple[int, int]],
        labels: np.ndarray,
        sample_rate: int,
        length: int,
        channels: int = 1,
        normalize_rms: float | None = None,
        class_names: list[str] | None = None,
        speakers: np.ndarray | None = None,
        speaker_names: list[str] | None = None,
    ) -> None:
        for name in (*(class_names or ()), *(speaker_names or ())):
            if not is_text(name):
                raise UserError(f"the label {printable(name)} is not valid text: rename it")
        self.items, self.labels, self.speakers = items, labels, speakers
        self.sample_rate, self.length, self.channels = sample_rate, length, channels
        self.normalize_rms = normalize_rms
        self.class_names, self.speaker_names = class_names, speaker_names

    def load(self, recording: int) -> tuple[np.ndarray, float]:
        """Return a recording that is not scaled, float32, and its root mean square over all channels.

        Its shape is (length,), or (channels, length) for more than one channel.
        """
        raise NotImplementedError

    def fingerprint(self) -> tuple[str, str]:
        """Return two hashes: of names, lengths, labels and speakers of the items, in order, and of their contents."""
        raise NotImplementedError

    def usable(self, index: int) -> int:
        """Return the item to use in the place of item ``index``: itself, unless its recording cannot be read."""
        return index

    def __len__(self) -> int:
        return len(self.items)

    def clip(self, index: int) -> np.ndarray:
        """Return the whole recording that contains item ``index``.

        Returns:
            float32, shape (length,), or (channels, length) for more than one channel. It may be a read-only view of the
            memory-mapped cache; with ``normalize_rms``, it is a scaled copy.
        """
        return self.part(index, 0, None)

    def part(self, index: int, start: int, stop: int | None) -> np.ndarray:
        """Return ``clip(index)[..., start:stop]`` without scaling the rest of the recording."""
        recording, _ = self.items[index]
        return self._scaled(recording, slice(start, stop))

    def clip_length(self, index: int) -> int:
        """Return the number of samples of each channel of ``clip(index)``."""
        recording, _ = self.items[index]
        return self.load(recording)[0].shape[-1]

    def __getitem__(self, index: int) -> dict[str, Any]:
        recording, start = self.items[index]
        samples = self._scaled(recording, slice(start, start + self.length))
        waveform = torch.zeros(self.channels, self.length)
        waveform[:, : samples.shape[-1]] = torch.from_numpy(samples.copy())
        item = {"waveform": waveform, "label": int(self.labels[index])}
        return item if self.speakers is None else item | {"speaker": int(self.speakers[index])}

    def _scaled(self, recording: int, part: slice) -> np.ndarray:
        whole, rms = self.load(recording)
        samples = whole[..., part]
        if self.normalize_rms is None or rms == 0:  # silence cannot be scaled
            return samples
        return samples * np.float32(self.normalize_rms / rms)

    def rms(self) -> float:
        """Return the root mean square over all items, scaled by ``normalize_rms`` and padded with zeros."""
        energy = sum(
            float(np.square(self._scaled(recording, slice(start, start + self.length)), dtype=np.float64).sum())
            for recording, start in self.items
        )
        return (energy / (len(self) * self.channels * self.length)) ** 0.5


class CachedDataset(Recordings):
    """Data set of consecutive chunks of recordings in the audio cache. The attribute ``files`` has their paths.

    Args:
        part: the recordings of this split.
        clips: the cached recordings, which may contain more files.
        positions: index of each recording of ``part`` in ``clips``.
        sample_rate, length, normalize_rms: see :class:`Recordings`.
        whole: whether each recording has one item, its beginning, instead of one for each chunk of ``length`` samples.
    """

    def __init__(
        self,
        part: Part,
        clips: CachedRecordings,
        positions: Sequence[int],
        sample_rate: int,
        length: int,
        normalize_rms: float | None = None,
        whole: bool = False,
    ) -> None:
        lengths = clips.lengths()[positions]
        starts = [range(0, 1 if whole else max(int(samples) - length, 0) + 1, length) for samples in lengths]
        items = [(recording, start) for recording, own in enumerate(starts) for start in own]
        recordings = [recording for recording, _ in items]
        super().__init__(
            items,
            np.asarray(part.labels, dtype=np.int64)[recordings],
            sample_rate,
            length,
            clips.channels,
            normalize_rms,
            part.class_names,
            None if part.speakers is None else np.asarray(part.speakers, dtype=np.int64)[recordings],
            part.speaker_names,
        )
        self.files = part.files
        self._clips, self._positions = clips, list(positions)
        if clips.sources is not None:
            self.changes = changes_of(clips.sources[clips.sources[:, 0] > 0], sample_rate, clips.channels)

    def load(self, recording: int) -> tuple[np.ndarray, float]:
        """Return a view of the memory-mapped cache, see :meth:`Recordings.load`."""
        position = self._positions[recording]
        return self._clips[position], self._clips.rms[position]

    def content(self, index: int) -> str:
        """Return a hash of the content of the file that contains item ``index``."""
        recording, _ = self.items[index]
        return self._clips.fingerprints[self._positions[recording]]

    def fingerprint(self) -> tuple[str, str]:
        """Return two hashes, see :meth:`Recordings.fingerprint`; the folders of the files are not part of them."""
        speakers = self.speakers
        names = "\n".join(
            f"{self.files[recording].name} {start} {self.clip_length(item)} {self.labels[item]}"
            + ("" if speakers is None else f" {speakers[item]}")
            for item, (recording, start) in enumerate(self.items)
        )
        contents = "\n".join(self.content(item) for item in range(len(self)))
        hashes = [hashlib.sha256(text.encode("utf-8", "surrogateescape")) for text in (names, contents)]
        return hashes[0].hexdigest(), hashes[1].hexdigest()


def changes_of(sources: np.ndarray, sample_rate: int, channels: int, what: str = "recordings") -> str:
    """Return how many recordings are resampled and mixed; see the attribute ``changes`` of :class:`Recordings`.

    Args:
        sources: rate in Hz and number of channels of the file of each recording, shape (recordings, 2).
        sample_rate: rate of the items in Hz.
        channels: channels of the items.
        what: name of the recordings in the text.
    """
    rates, texts = sources[:, 0], []
    if resampled := int((rates != sample_rate).sum()):
        others = " and ".join(f"{rate} Hz" for rate in np.unique(rates[rates != sample_rate]))
        texts.append(f"{resampled} of {len(sources)} {what} are resampled from {others} to {sample_rate} Hz")
    if channels == 1 and (mixed := int((sources[:, 1] > 1).sum())):
        kind = "are stereo" if sources[:, 1].max() == 2 else "have several channels"
        texts.append(f"{mixed} of {len(sources)} {what} {kind} and are mixed to one channel")
    return "; ".join(texts)


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
    listing = _listing(bad, root, cache_dir, "bad-files")
    summary = f"{len(bad)} of {total} audio files in {printable(root)} cannot be used:{listing}"
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
        listing = _listing(unusual, root, cache_dir, "unusual-files")
        warnings.warn(
            f"{len(unusual)} of {total} audio files in {printable(root)} are unusual:{listing}they are used "
            "as they are",
            stacklevel=3,
        )


def _listing(reasons: Mapping[Path, str], root: Path, cache_dir: Path | str | None, name: str) -> str:
    """Return the list of files for a message; a long list is also written to a file."""
    lines = [f"{printable(path.relative_to(root).as_posix())}: {why}" for path, why in reasons.items()]
    if len(lines) == 1:
        return f" {lines[0]}; "
    shown = lines[:_LISTED]
    if len(lines) > _LISTED:
        shown.append(f"and {len(lines) - _LISTED} more; {_written(lines, root, cache_dir, name)}")
    # Commands print messages in one line, in which only the semicolons separate the files.
    return "\n  " + ";\n  ".join(shown) + ";\n"


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
