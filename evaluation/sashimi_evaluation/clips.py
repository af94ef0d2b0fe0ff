"""Folders of clips: the files of a set with their labels and likelihoods."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sashimi_diffusion.data.audio_files import find_audio
from sashimi_diffusion.data.names import FOLDER, read_fields, select
from sashimi_diffusion.data.recordings import report_bad_files, require_folder
from sashimi_diffusion.data.speech_commands import DIGITS, listed_split, read_split_lists
from sashimi_diffusion.errors import UserError

SAMPLES_FILE = "samples.json"
SPLIT = "split"


@dataclass(frozen=True)
class ClipFolder:
    """Audio files that are evaluated as one set.

    Args:
        name: name of the set in reports.
        root: the folder.
        files: the audio files, sorted by path.
        labels: digit of each clip, int64 (n,), -1 where unknown.
        log_likelihoods: log-likelihood of each clip in nats under the model that generated it, float64 (n,), NaN where
            unknown.
        bits_per_sample: negative log-likelihood per audio sample of each clip in bits, float64 (n,), NaN where unknown.
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
    otherwise from the first subfolder of the path of a file if its name is a digit ("seven" or "7"). If the label of a
    single clip is unknown, all labels are -1.

    Args:
        path: the folder.
        name: name of the set; default: the name of the folder.
        pattern: pattern of the file names, see :class:`sashimi_diffusion.data.AudioFolder`. Files in ``samples.json``
            do not have to match it.
        where: values by field. Only files that have one of the given values in every field are kept. A folder with the
            lists of Speech Commands (``validation_list.txt``, ``testing_list.txt``) also has the field ``split``.
        skip_bad_files: warn about files with names that do not match ``pattern``, and continue without them.

    Raises:
        UserError: the folder does not exist or has no audio, a name does not match, a field or value is unknown, or
            ``samples.json`` is damaged.
    """
    root = require_folder(path, "a folder with clips (wav, flac, ogg or mp3)")
    files, unusable = find_audio(root)
    samples = _read_samples_file(root)
    fields, misnamed = read_fields(files, root, pattern)
    listed = [file for file in misnamed if file.relative_to(root).as_posix() in samples]
    fields = dict(sorted((fields | read_fields(listed, root, None)[0]).items()))
    misnamed = {file: reason for file, reason in misnamed.items() if file not in fields}
    report_bad_files(unusable | misnamed, len(files) + len(unusable), root, skip_bad_files)
    lists = read_split_lists(root)
    if lists:
        for file, file_fields in fields.items():
            file_fields[SPLIT] = listed_split(file, lists)
    names = sorted({field for file_fields in fields.values() for field in file_fields})
    kept = select(fields, where or {}, names, "the selection of clips")
    if not kept:
        raise UserError(f"no clip in {root} has the requested values in all fields: request other values")
    labels = [_label(samples.get(file.relative_to(root).as_posix()), fields[file]) for file in kept]
    clips = ClipFolder(
        name=name or root.resolve().name,
        root=root,
        files=tuple(kept),
        labels=np.asarray(labels, dtype=np.int64),
        log_likelihoods=_sample_values(samples, kept, root, "log_likelihood"),
        bits_per_sample=_sample_values(samples, kept, root, "bits_per_sample"),
    )
    # The accuracy of a set is defined only if every clip has a label.
    return clips if clips.labeled else replace(clips, labels=np.full(len(clips), -1))


def open_sets(folders: Sequence[str], pattern: str | None = None, skip_bad_files: bool = False) -> list[ClipFolder]:
    """Open several folders, each given as ``DIR`` or ``NAME=DIR``; see :func:`open_clips`.

    Raises:
        UserError: a folder cannot be used, or two sets have the same name.
    """
    sets = []
    for text in folders:
        name, separator, path = text.partition("=")
        if separator and not Path(text).exists():
            sets.append(open_clips(path, name, pattern, None, skip_bad_files))
        else:
            sets.append(open_clips(text, None, pattern, None, skip_bad_files))
    names = [clips.name for clips in sets]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(
            f"two sets are called {twice!r}: give them different names, such as ours={twice} theirs=other/{twice}"
        )
    return sets


def split_held_out(
    path: Path | str,
    pattern: str | None,
    where: Mapping[str, object] | None,
    hold_out: Mapping[str, object],
    skip_bad_files: bool,
) -> tuple[ClipFolder, ClipFolder]:
    """Split a folder of real clips into a reference and held-out clips.

    Args:
        path: the folder.
        pattern: see :func:`open_clips`.
        where: see :func:`open_clips`; applies to both sets.
        hold_out: values by field; clips that have one of the given values in every field are held out.
        skip_bad_files: see :func:`open_clips`.

    Returns:
        The reference and the held-out clips.

    Raises:
        UserError: as :func:`open_clips`, or one of the two sets is empty.
    """
    clips = open_clips(path, None, pattern, where, skip_bad_files)
    matching = set(open_clips(path, None, pattern, hold_out, skip_bad_files).files)
    held_out = [i for i, file in enumerate(clips.files) if file in matching]
    rest = [i for i, file in enumerate(clips.files) if file not in matching]
    for indices, what in ((held_out, "none"), (rest, "all")):
        if not indices:
            raise UserError(
                f"--hold-out matches {what} of the {len(clips)} clips in {path}: it must match some of them, not all"
            )
    return clips.select(rest), replace(clips.select(held_out), name="held-out recordings")


def _read_samples_file(root: Path) -> dict[str, dict[str, Any]]:
    """Return the entries of ``samples.json`` by file name, or an empty dictionary if there is no such file."""
    path = root / SAMPLES_FILE
    if not path.is_file():
        return {}
    try:
        samples = json.loads(path.read_text(encoding="utf-8"))["samples"]
        return {sample["file"]: sample for sample in samples if sample["file"] is not None}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} was not written by sashimi-sample or is damaged ({type(error).__name__}: {error}): generate the "
            "samples again, or remove the file to evaluate the clips without labels and likelihoods"
        ) from error


def _label(sample: dict[str, Any] | None, fields: dict[str, str]) -> int:
    """Return the first known digit among the entry of ``samples.json``, the file name and the folder, or -1."""
    texts = [] if sample is None else [sample.get("class_name"), sample.get("label")]
    texts += [fields.get("label"), fields.get(FOLDER)]
    digits = [digit_index(str(text)) for text in texts if text is not None]
    return next((digit for digit in digits if digit >= 0), -1)


def _sample_values(samples: Mapping[str, dict], files: Sequence[Path], root: Path, key: str) -> np.ndarray:
    values = [samples.get(file.relative_to(root).as_posix(), {}).get(key) for file in files]
    return np.asarray([np.nan if value is None else value for value in values], dtype=np.float64)
