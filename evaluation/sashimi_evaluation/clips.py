"""Folders of clips: the files of a set with their labels and likelihoods."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sashimi_diffusion.data.audio_folder import find_audio
from sashimi_diffusion.data.names import FOLDER, read_fields, select
from sashimi_diffusion.data.recordings import report_bad_files, require_folder
from sashimi_diffusion.data.speech_commands import DIGITS, listed_split, read_split_lists
from sashimi_diffusion.errors import UserError

RECORD = "samples.json"
SPLIT = "split"


@dataclass(frozen=True)
class ClipFolder:
    """Audio files that are evaluated as one set.

    Args:
        name: name of the set in reports.
        root: the folder.
        files: the audio files, sorted by path.
        labels: the digit of each clip, int64 (n,), -1 where unknown.
        log_likelihoods: of each clip in nats under the model that generated it, float64 (n,), NaN where unknown.
        bits_per_sample: of each clip, float64 (n,), NaN where unknown.
    """

    name: str
    root: Path
    files: tuple[Path, ...]
    labels: np.ndarray
    log_likelihoods: np.ndarray
    bits_per_sample: np.ndarray

    def __len__(self) -> int:
        return len(self.files)

    def select(self, indices: Sequence[int] | np.ndarray) -> "ClipFolder":
        """Return the same set with only the clips at ``indices``, in that order."""
        indices = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            files=tuple(self.files[i] for i in indices),
            labels=self.labels[indices],
            log_likelihoods=self.log_likelihoods[indices],
            bits_per_sample=self.bits_per_sample[indices],
        )

    @property
    def labeled(self) -> bool:
        """Whether the labels of all clips are known."""
        return bool((self.labels >= 0).all())


def digit_index(text: str) -> int:
    """Return 0 to 9 for "0" to "9" or "zero" to "nine" in any case, and -1 for any other text."""
    word = text.strip().lower()
    if word in DIGITS:
        return DIGITS.index(word)
    return int(word) if word in {str(digit) for digit in range(10)} else -1


def open_clips(
    path: Path | str,
    name: str | None = None,
    pattern: str | None = None,
    where: Mapping[str, object] | None = None,
    skip_bad_files: bool = False,
) -> ClipFolder:
    """Find the clips of a folder and its subfolders.

    Labels come from the ``samples.json`` that sashimi-sample writes; otherwise from the field ``label`` of ``pattern``;
    otherwise from the first subfolder of the path of a file if its name is a digit ("seven" or "7").

    Args:
        path: the folder.
        name: of the set; default: the name of the folder.
        pattern: pattern of the names of files that ``samples.json`` does not list, see
            :class:`sashimi_diffusion.data.AudioFolder`.
        where: keep only files whose fields have one of the given values. A folder with the lists of Speech Commands
            (``validation_list.txt``, ``testing_list.txt``) also has the field ``split``.
        skip_bad_files: warn of files whose names do not match ``pattern`` and continue without them.

    Raises:
        UserError: no folder, no audio, names that do not match, an unknown field or value, or a damaged
            ``samples.json``.
    """
    root = require_folder(path, "a folder with clips (wav, flac, ogg or mp3)")
    files = find_audio(root)
    record = _read_record(root)
    fields, misnamed = read_fields(files, root, pattern)
    recorded = [file for file in misnamed if file.relative_to(root).as_posix() in record]
    fields = dict(sorted((fields | read_fields(recorded, root, None)[0]).items()))
    misnamed = {file: reason for file, reason in misnamed.items() if file not in fields}
    report_bad_files(misnamed, len(files), root, skip_bad_files)
    lists = read_split_lists(root)
    if lists:
        for file, own in fields.items():
            own[SPLIT] = listed_split(file, lists)
    kept = select(fields, where or {}, sorted({key for own in fields.values() for key in own}), "the choice of clips")
    if not kept:
        raise UserError(f"no clip of {root} has all the requested fields: request other values")
    labels = [_label(record.get(file.relative_to(root).as_posix()), fields[file]) for file in kept]
    clips = ClipFolder(
        name=name or root.resolve().name,
        root=root,
        files=tuple(kept),
        labels=np.asarray(labels, dtype=np.int64),
        log_likelihoods=_recorded(record, kept, root, "log_likelihood"),
        bits_per_sample=_recorded(record, kept, root, "bits_per_sample"),
    )
    return clips if clips.labeled else replace(clips, labels=np.full(len(clips), -1))


def open_sets(places: Sequence[str], pattern: str | None = None, skip_bad_files: bool = False) -> list[ClipFolder]:
    """Open several folders, each given as ``DIR`` or ``NAME=DIR``, with different names; see :func:`open_clips`.

    Raises:
        UserError: a folder cannot be used, or two have the same name.
    """
    sets = []
    for text in places:
        name, separator, path = text.partition("=")
        if separator and not Path(text).exists():
            sets.append(open_clips(path, name, pattern, None, skip_bad_files))
        else:
            sets.append(open_clips(text, None, pattern, None, skip_bad_files))
    names = [clips.name for clips in sets]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"two sets are called {twice!r}: name them, as in ours={twice} theirs=other/{twice}")
    return sets


def split_held_out(
    path: Path | str,
    pattern: str | None,
    where: Mapping[str, object] | None,
    hold_out: Mapping[str, object],
    skip_bad_files: bool,
) -> tuple[ClipFolder, ClipFolder]:
    """Split a folder of real clips into the reference and the held-out clips, whose fields match ``hold_out``.

    Raises:
        UserError: as :func:`open_clips`, or one of the two sets is empty.
    """
    clips = open_clips(path, None, pattern, where, skip_bad_files)
    matching = set(open_clips(path, None, pattern, hold_out, skip_bad_files).files)
    held_out = [i for i, file in enumerate(clips.files) if file in matching]
    rest = [i for i, file in enumerate(clips.files) if file not in matching]
    for indices, what in ((held_out, "none"), (rest, "all")):
        if not indices:
            raise UserError(f"--hold-out takes {what} of the {len(clips)} clips of {path}: both parts need clips")
    return clips.select(rest), replace(clips.select(held_out), name="held-out recordings")


def _read_record(root: Path) -> dict[str, dict[str, Any]]:
    """Return the entries of ``samples.json`` by file name; none if there is no such file."""
    path = root / RECORD
    if not path.is_file():
        return {}
    try:
        samples = json.loads(path.read_text(encoding="utf-8"))["samples"]
        return {sample["file"]: sample for sample in samples if sample["file"] is not None}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is not a record of sashimi-sample ({type(error).__name__}: {error}): generate the samples again, "
            "or remove it to evaluate the clips without labels and likelihoods"
        ) from error


def _label(sample: dict[str, Any] | None, fields: dict[str, str]) -> int:
    texts = [] if sample is None else [sample.get("class_name"), sample.get("label")]
    texts += [fields.get("label"), fields.get(FOLDER)]
    return next((digit for digit in (digit_index(str(text)) for text in texts if text is not None) if digit >= 0), -1)


def _recorded(record: Mapping[str, dict], files: Sequence[Path], root: Path, key: str) -> np.ndarray:
    values = [record.get(file.relative_to(root).as_posix(), {}).get(key) for file in files]
    return np.asarray([np.nan if value is None else value for value in values], dtype=np.float64)
