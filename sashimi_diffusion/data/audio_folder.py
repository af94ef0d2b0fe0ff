"""A folder of recordings as a data set: chunks of equal length, labels from file names, splits of whole files."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from sashimi_diffusion.data.audio_files import find_audio
from sashimi_diffusion.data.cache import cached_recordings
from sashimi_diffusion.data.names import FOLDER, Fields, field_names, natural_order, read_fields, require, select
from sashimi_diffusion.data.recordings import (
    Recordings,
    check_request,
    report_bad_files,
    report_unusual_files,
    require_folder,
)
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.terminal import printable

SPLITS = ("train", "validation", "test", "all")
ORDERS = ("shuffled", "name")
SUB_FOLDERS = "sub-folders"
"""Value of the argument ``labels`` of :class:`AudioFolder`; no field of a pattern can have this name."""


class AudioFolder(Recordings):
    """Data set of chunks of equal length of all wav, flac, ogg and mp3 files in a folder and its sub-folders.

    Hidden files are ignored. A recording is cut into consecutive chunks of ``length`` samples, which are the items. The
    remainder at its end is in no item, only in :meth:`clip`. A recording that is shorter than one chunk is padded with
    zeros on the right; longer recordings are never padded.

    A split consists of whole files. With ``order="shuffled"``, the files of each class are ordered by a hash of
    ``seed`` and their paths: the first are the validation split, the next the test split, the rest the training split.
    With ``order="name"``, all files are in the natural order of their paths: the first are the training split, the next
    the validation split, the last the test split, like the music data sets of the SaShiMi paper. A split with a ratio
    above zero has at least one file (of each class, if shuffled). If there are too few files for that, the training
    split gets the first file, and the validation split the second.

    Args:
        path: the folder.
        split: "train", "validation", "test" or "all".
        sample_rate: in Hz; recordings at other rates are resampled.
        length: samples in an item.
        pattern: pattern of the file names without endings. ``"{label}_{speaker}_{index}"`` reads three fields from
            ``7_jackson_32.wav``. A pattern with slashes also reads folders: ``"{speaker}/{label}_{index}"``. A file
            with another name is a bad file. The field ``folder`` is always the first sub-folder.
        labels: field of the class, for example ``"folder"``. Default: ``label`` if ``pattern`` has it, otherwise there
            are no classes. ``"sub-folders"``: as the default, but without ``pattern`` the first sub-folder is the class
            if the files are in at least two sub-folders.
        where: use only the files in which every field of this mapping has one of the given values, for example
            ``{"speaker": ["jackson", "nicolas"]}``.
        holdout: replaces ``splits``. The files in which every field of this mapping has one of the given values are the
            validation split, all others the training split, for example ``{"index": ["0", "1"]}``. There is no test
            split.
        splits: ratios of training, validation and test files.
        order: "shuffled" or "name", see above.
        seed: seed of the shuffled order.
        normalize_rms: scale every recording to this root mean square (1.0 is full scale); None does not scale.
        cache_dir: folder for decoded audio; default :func:`sashimi_diffusion.cache_files.default_cache_dir`.
        skip_bad_files: skip files that cannot be used, with a warning.
        speakers: field of the speaker, for example ``"speaker"``. Default: items have no speaker.

    Raises:
        UserError: the folder does not exist or has no audio, the split is empty, a field or value does not exist, or
            files are unreadable, empty, not finite or do not match ``pattern``.
    """

    def __init__(
        self,
        path: Path | str,
        split: str = "train",
        sample_rate: int = 16000,
        length: int = 16000,
        pattern: str | None = None,
        labels: str | None = None,
        where: Mapping[str, object] | None = None,
        holdout: Mapping[str, object] | None = None,
        splits: Sequence[float] = (0.88, 0.06, 0.06),
        order: str = "shuffled",
        seed: int = 0,
        normalize_rms: float | None = None,
        cache_dir: Path | str | None = None,
        skip_bad_files: bool = False,
        speakers: str | None = None,
    ) -> None:
        check_request(sample_rate, length, split, SPLITS)
        _check_numbers(splits, normalize_rms)
        if order not in ORDERS:
            raise UserError(f"unknown order {order!r}: expected one of {', '.join(ORDERS)}")
        root = require_folder(path, "a folder with recordings (wav, flac, ogg or mp3)")
        files, unusable = find_audio(root)
        names = field_names(pattern)
        label_field = _label_field(labels, names, files, root)
        for purpose, field in (("labels", label_field), ("speakers", speakers)):
            if field is not None:
                require(field, names, f"{purpose} names the field", "the fields are")
        fields, misnamed = read_fields(files, root, pattern)
        kept = select(fields, where or {}, names, "where")

        clips = cached_recordings(kept, sample_rate, cache_dir=cache_dir)
        bad = unusable | misnamed | _without_folder(kept, fields, {"label": label_field, "speaker": speakers})
        bad |= {kept[position]: reason for position, reason in clips.bad.items()}
        report_bad_files(bad, len(kept) + len(misnamed) + len(unusable), root, skip_bad_files, cache_dir)
        unusual = {kept[position]: text for position, text in clips.warnings.items()}
        report_unusual_files(unusual, len(kept), root, cache_dir)

        usable = {file: fields[file] for file in kept if file not in bad}
        classes = {file: own[label_field] if label_field else "" for file, own in usable.items()}
        if holdout:
            parts = _held_out(usable, holdout, names)
        elif order == "name":
            parts = _by_name(list(usable), root, splits)
        else:
            parts = _shuffled(classes, root, splits, seed)
        chosen = [file for file in usable if split in ("all", parts[file])]
        if not chosen:
            raise UserError(_empty_split(root, split, len(usable), bool(holdout)))

        labels_of, class_names = _numbered(classes, chosen) if label_field else ([-1] * len(chosen), None)
        speaker_name_of = {file: own[speakers] for file, own in usable.items()} if speakers else {}
        speakers_of, speaker_names = _numbered(speaker_name_of, chosen) if speakers else (None, None)
        position_of = {file: position for position, file in enumerate(kept)}
        positions = [position_of[file] for file in chosen]
        lengths = clips.lengths()[positions]
        super().__init__(
            files=chosen,
            clips=clips,
            positions=positions,
            items=[(i, start) for i, samples in enumerate(lengths) for start in _chunk_starts(int(samples), length)],
            labels=labels_of,
            class_names=class_names,
            sample_rate=sample_rate,
            length=length,
            normalize_rms=normalize_rms,
            speakers=speakers_of,
            speaker_names=speaker_names,
        )


def _label_field(labels: str | None, names: Sequence[str], files: Sequence[Path], root: Path) -> str | None:
    """Return the field of the class, or None if there are no classes; see the argument ``labels``."""
    if labels not in (None, SUB_FOLDERS):
        return labels
    if labels == SUB_FOLDERS and names == [FOLDER]:
        folders = {relative.parts[0] for relative in (file.relative_to(root) for file in files) if relative.parts[1:]}
        return FOLDER if len(folders) > 1 else None
    return "label" if "label" in names else None


def _chunk_starts(samples: int, length: int) -> range:
    return range(0, max(samples - length, 0) + 1, length)


def _without_folder(files: Sequence[Path], fields: Fields, wanted: Mapping[str, str | None]) -> dict[Path, str]:
    """Return the files that are in no sub-folder, with a reason, if ``wanted`` reads the field ``folder``.

    Args:
        files: the files to check.
        fields: fields of all files.
        wanted: "label" and "speaker" -> the field that gives it, or None.
    """
    missing = " and no ".join(what for what, field in wanted.items() if field == FOLDER)
    if not missing:
        return {}
    return {file: f"in no sub-folder, so it has no {missing}" for file in files if FOLDER not in fields[file]}


def _numbered(values: Mapping[Path, str], chosen: Sequence[Path]) -> tuple[list[int], list[str]]:
    """Return the value of each of the ``chosen`` files as an index, and the names of all values in natural order."""
    names = sorted(set(values.values()), key=natural_order)
    return [names.index(values[file]) for file in chosen], names


def _held_out(usable: Fields, holdout: Mapping[str, object], names: Sequence[str]) -> dict[Path, str]:
    """Return the split of each file by the values of its fields."""
    chosen = set(select(usable, holdout, names, "holdout"))
    return {file: "validation" if file in chosen else "train" for file in usable}


def _shuffled(classes: Mapping[Path, str], root: Path, splits: Sequence[float], seed: int) -> dict[Path, str]:
    """Return the split of each file; a hash gives the same order on every machine, also if files are added."""
    members: dict[str, list[tuple[bytes, Path]]] = defaultdict(list)
    for file, label in classes.items():
        order = hashlib.sha256(f"{seed}:{file.relative_to(root).as_posix()}".encode("utf-8", "surrogatepass")).digest()
        members[label].append((order, file))
    parts = {}
    for ordered in members.values():
        validation, test = _held_out_counts(len(ordered), splits)
        for rank, (_, file) in enumerate(sorted(ordered)):
            parts[file] = "validation" if rank < validation else "test" if rank < validation + test else "train"
    return parts


def _by_name(files: Sequence[Path], root: Path, splits: Sequence[float]) -> dict[Path, str]:
    """Return the split of each file by its position in the natural order of paths; boundaries are rounded down."""
    ordered = sorted(files, key=lambda file: natural_order(file.relative_to(root).as_posix()))
    validation, test = _held_out_counts(len(files), splits)
    # 0.94 of 50 files is 47, although 0.94 has no exact binary representation.
    first = min(int(splits[0] * len(files) + 1e-9), len(files) - validation - test)
    second = min(int((splits[0] + splits[1]) * len(files) + 1e-9), len(files) - test)
    first, second = max(first, int(splits[0] > 0)), max(second, first + validation)
    return {
        file: "train" if rank < first else "validation" if rank < second else "test"
        for rank, file in enumerate(ordered)
    }


def _held_out_counts(files: int, splits: Sequence[float]) -> tuple[int, int]:
    """Return the numbers of validation and test files by their ratios, rounded.

    A ratio above zero gives at least one file. If there are too few files, one for training comes first.
    """
    train, validation, test = splits
    available = files - (train > 0)
    wanted = max(1, round(validation * files)) if validation > 0 else 0
    validation_files = min(wanted, max(1, available - (test > 0)), available)
    wanted = max(1, round(test * files)) if test > 0 else 0
    return validation_files, min(wanted, available - validation_files)


def _check_numbers(splits: Sequence[float], normalize_rms: float | None) -> None:
    if len(splits) != 3 or min(splits) < 0 or abs(sum(splits) - 1) > 1e-6:
        raise UserError(f"splits must be three ratios (training, validation, test) that add up to 1, got {splits!r}")
    if normalize_rms is not None and not normalize_rms > 0:
        raise UserError(f"normalize_rms must be above zero, got {normalize_rms!r}")


def _empty_split(root: Path, split: str, files: int, held_out: bool) -> str:
    empty = f"the {split} split of {printable(root)} is empty"
    if held_out and split == "test":
        return (
            f"{empty}: holdout divides its {files} files into train and validation only; "
            "set data.test=false to train without test data"
        )
    if held_out:
        matching = "all" if split == "train" else "none"
        return f"{empty}: holdout matches {matching} of its {files} files; change holdout"
    return (
        f"{empty}: it has {files} usable files, and splits are made of whole files. "
        "Add files, cut them into shorter ones, or change splits"
    )
