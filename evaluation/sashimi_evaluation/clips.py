"""Folders of clips: the files of a set with their labels and likelihoods."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from sashimi_diffusion.data.audio import check_file_rate
from sashimi_diffusion.data.audio_files import find_audio
from sashimi_diffusion.data.decoding import Decoded, decode_audio
from sashimi_diffusion.data.names import FOLDER, read_fields, select
from sashimi_diffusion.data.recordings import report_bad_files, require_folder
from sashimi_diffusion.data.speech_commands import DIGITS, SPLIT_LISTS, listed_split, read_split_lists
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.paths import read_json, status
from sashimi_diffusion.terminal import listed, printable
from sashimi_evaluation.preparation import Preparation, recorded_preparation

SAMPLES_FILE = "samples.json"
RECORDS = (SAMPLES_FILE, *SPLIT_LISTS.values())
"""The files in a folder of clips that say something about them."""
SPLIT = "split"
_LABEL = "label"
_LISTED = 3  # number of files that a note lists
_FIGURES = {str(digit) for digit in range(10)}
_RECORD_BYTES = 1 << 31  # a million clips take about 400 MB


@dataclass(frozen=True)
class ClipFolder:
    """Audio files that are evaluated as one set.

    Args:
        name: name of the set in reports.
        root: the folder.
        files: the audio files, sorted by path.
        labels: class of each clip, an index into ``class_names``, int64 (n,); all are -1 if one is unknown.
        log_likelihoods: log-likelihood of each clip in nats under the model that generated it, float64 (n,), NaN where
            unknown.
        bits_per_sample: negative log-likelihood per audio sample of each clip in bits, float64 (n,), NaN where unknown.
        record_notes: what is missing in the folder, for reports.
        label_notes: why there are no labels, for reports.
        words: for each clip, the words that may name its class, the most reliable first; see :func:`open_clips`.
        pattern: pattern of the file names, or None.
        named: whether the record or the pattern names the class of any clip.
        class_names: the names of the classes.
        others: audio files in the folder that are not in the set, because of their names or their fields.
        recorded: what ``samples.json`` says about the training data of the pipeline that generated the clips.
        preparation: what is done to the clips before they are evaluated.
    """

    name: str
    root: Path
    files: tuple[Path, ...]
    labels: np.ndarray
    log_likelihoods: np.ndarray
    bits_per_sample: np.ndarray
    words: tuple[tuple[str, ...], ...]
    pattern: str | None = None
    named: bool = False
    class_names: tuple[str, ...] = ()
    record_notes: tuple[str, ...] = ()
    label_notes: tuple[str, ...] = ()
    others: tuple[Path, ...] = ()
    recorded: Preparation = field(default_factory=Preparation)
    preparation: Preparation = field(default_factory=Preparation)

    def __len__(self) -> int:
        return len(self.files)

    def select(self, indices: Sequence[int] | np.ndarray) -> "ClipFolder":
        """Return the same set with only the clips at ``indices``, in that order."""
        indices = np.asarray(indices, dtype=np.int64)
        return replace(
            self,
            files=tuple(self.files[i] for i in indices),
            labels=self.labels[indices],
            words=tuple(self.words[i] for i in indices),
            log_likelihoods=self.log_likelihoods[indices],
            bits_per_sample=self.bits_per_sample[indices],
        )

    def labeled_by(self, class_names: Sequence[str]) -> "ClipFolder":
        """Return the same set with labels that are indices into ``class_names``.

        If the label of a single clip is unknown, all labels are -1, and a note says why.
        """
        known = [[index for word in words if (index := class_index(word, class_names)) >= 0] for words in self.words]
        notes = self._label_notes([file for file, own in zip(self.files, known, strict=True) if not own], class_names)
        # The accuracy of a set is defined only if every clip has a label.
        labels = [own[0] for own in known] if all(known) else [-1] * len(self)
        return replace(
            self, labels=np.asarray(labels, dtype=np.int64), class_names=tuple(class_names), label_notes=tuple(notes)
        )

    def _label_notes(self, unlabeled: Sequence[Path], class_names: Sequence[str]) -> list[str]:
        """Return why there are no label metrics, or nothing if no label was given."""
        if unlabeled and (self.named or len(unlabeled) < len(self)):
            what = "digit" if list(class_names) == DIGITS else f"class of the classifier ({listed(class_names, 12)})"
            names = [_relative(file, self.root) for file in unlabeled]
            return [f"no label metrics, because clips have no {what} as their label: {_listed(names, len(self))}"]
        if unlabeled and self.pattern is not None:
            return [f"no label metrics, because the pattern {printable(self.pattern)} has no field {{{_LABEL}}}"]
        return []

    @property
    def labeled(self) -> bool:
        """Whether the labels of all clips are known."""
        return bool((self.labels >= 0).all())

    @property
    def notes(self) -> tuple[str, ...]:
        """What is missing in the folder, for reports."""
        return (*self.record_notes, *self.label_notes)


def class_index(text: str, class_names: Sequence[str]) -> int:
    """Return the index of the class that a text names, in any case, and -1 if it names none.

    The figures 0 to 9 name the words zero to nine.
    """
    word = _word(text)
    return next((index for index, name in enumerate(class_names) if _word(name) == word), -1)


def _word(text: str) -> str:
    word = text.strip().lower()
    return DIGITS[int(word)] if word in _FIGURES else word


def open_clips(
    path: Path | str,
    name: str | None = None,
    pattern: str | None = None,
    where: Mapping[str, object] | None = None,
    skip_bad_files: bool = False,
) -> ClipFolder:
    """Find the clips of a folder and its subfolders.

    Classes come from the ``samples.json`` that sashimi-sample writes: the name of the class, or its number if it has no
    name; otherwise from the field ``label`` of ``pattern``; otherwise from the first subfolder of the path of a file if
    its name is a class ("seven" or "7"). The labels number the ten digits; :meth:`ClipFolder.labeled_by` numbers other
    classes.

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
    samples, complete, recorded = _read_samples_file(root)
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
        raise UserError(f"no clip in {printable(root)} has the requested values in all fields: request other values")
    texts = [_class_text(samples.get(_relative(file, root)), fields[file]) for file in kept]
    notes = [] if complete else [f"{SAMPLES_FILE} belongs to a run of sashimi-sample that did not finish"]
    notes += _record_notes(samples, [_relative(file, root) for file in files])
    clips = ClipFolder(
        name=name or root.resolve().name,
        root=root,
        files=tuple(kept),
        labels=np.full(len(kept), -1),
        words=tuple(_words(text, fields[file]) for text, file in zip(texts, kept, strict=True)),
        pattern=pattern,
        named=any(text is not None for text in texts),
        log_likelihoods=_sample_values(samples, kept, root, "log_likelihood"),
        bits_per_sample=_sample_values(samples, kept, root, "bits_per_sample"),
        record_notes=tuple(notes),
        others=tuple(set(files).difference(kept)),
        recorded=recorded,
    )
    return clips.labeled_by(DIGITS)


def read_clip(path: Path, max_seconds: float) -> Decoded:
    """Return the first ``max_seconds`` of a clip; little more of the file is decoded.

    Raises:
        AudioFileError: the file cannot be used, or audio at its sample rate cannot be resampled.
    """
    decoded = decode_audio(path, max_seconds)
    check_file_rate(path, decoded.sample_rate)
    return decoded


def open_sets(folders: Sequence[str], pattern: str | None = None, skip_bad_files: bool = False) -> list[ClipFolder]:
    """Open several folders, each given as ``DIR`` or ``NAME=DIR``; see :func:`open_clips`.

    Raises:
        UserError: a folder cannot be used, or two sets have the same name.
    """
    sets = []
    for text in folders:
        name, separator, path = text.partition("=") if status(text) is None else ("", "", text)
        path = path if separator else text
        if not path:
            raise UserError(f"{text!r} names no folder: expected DIR or NAME=DIR")
        sets.append(open_clips(path, name if separator else None, pattern, None, skip_bad_files))
    names = [clips.name for clips in sets]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(
            f"two sets are called {twice!r}: give them different names, such as ours={printable(twice)} "
            f"theirs=other/{printable(twice)}"
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
                f"--hold-out matches {what} of the {len(clips)} clips in {printable(path)}: "
                "it must match some of them, not all"
            )
    return clips.select(rest), replace(clips.select(held_out), name="held-out recordings")


def _relative(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix()


def _read_samples_file(root: Path) -> tuple[dict[str, dict[str, Any]], bool, Preparation]:
    """Return the content of ``samples.json``: its entries by file name, whether it is complete, and the preparation.

    Without such a file there are no entries.
    """
    path = root / SAMPLES_FILE
    if status(path) is None:
        return {}, True, Preparation()
    advice = "generate the samples again, or remove the file to evaluate the clips without labels and likelihoods"
    content = read_json(path, f"the record that sashimi-sample writes; {advice}", _RECORD_BYTES)
    try:
        samples = content["samples"]
        by_name = {sample["file"]: sample for sample in samples if sample["file"] is not None}
    except (KeyError, TypeError) as error:
        raise UserError(
            f"{printable(path)} was not written by sashimi-sample or is damaged ({type(error).__name__}: "
            f"{printable(error)}): {advice}"
        ) from error
    return by_name, content.get("complete") is not False, recorded_preparation(content, path)


def _class_text(sample: dict[str, Any] | None, fields: dict[str, str]) -> str | None:
    """Return the class in the entry of ``samples.json`` or in the file name as text, or None if neither has one."""
    texts = [] if sample is None else [sample.get("class_name"), sample.get("label")]
    return next((str(text) for text in [*texts, fields.get(_LABEL)] if text is not None), None)


def _words(text: str | None, fields: dict[str, str]) -> tuple[str, ...]:
    """Return the words that may name the class of a clip: the text of its class, and its first subfolder."""
    # A pipeline may number any words from 0 on, so the folder does not replace a class of samples.json.
    folder = fields.get(FOLDER) if text in (None, fields.get(_LABEL)) else None
    return tuple(word for word in (text, folder) if word is not None)


def _record_notes(samples: Mapping[str, dict], names: Sequence[str]) -> list[str]:
    """Return notes about clips that only ``samples.json`` or only the folder has."""
    if not samples:
        return []
    present = set(names)
    missing = [name for name in samples if name not in present]
    unnamed = [name for name in names if name not in samples]
    notes = []
    if missing:
        notes.append(f"{SAMPLES_FILE} names clips that are missing: {_listed(missing, len(samples))}")
    if unnamed:
        notes.append(f"clips are not in {SAMPLES_FILE}: {_listed(unnamed, len(names))}")
    return notes


def _listed(names: Sequence[str], total: int) -> str:
    return f"{len(names)} of {total} ({listed(names, _LISTED)})"


def _sample_values(samples: Mapping[str, dict], files: Sequence[Path], root: Path, key: str) -> np.ndarray:
    """Return a number of each clip from ``samples.json``, NaN where there is none."""
    values = [samples.get(_relative(file, root), {}).get(key) for file in files]
    wrong = next((position for position, value in enumerate(values) if not _is_number_or_none(value)), None)
    if wrong is not None:
        raise UserError(
            f"{printable(root / SAMPLES_FILE)}: {key} of {printable(_relative(files[wrong], root))} is "
            f"{printable(repr(values[wrong])[:40])}, expected a number"
        )
    return np.asarray([np.nan if value is None else value for value in values], dtype=np.float64)


def _is_number_or_none(value: Any) -> bool:
    if isinstance(value, int) and not isinstance(value, bool):
        return abs(value) <= sys.float_info.max
    return value is None or isinstance(value, float)
