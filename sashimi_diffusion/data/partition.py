"""Divide recordings into training, validation and test parts, and number their labels."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sashimi_diffusion.data.names import Fields, natural_order, select
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.terminal import printable

SPLITS = ("train", "validation", "test", "all")
ORDERS = ("shuffled", "name")


@dataclass(frozen=True)
class Wanted:
    """Which part of a data set is requested, and how the data set is divided.

    Attributes:
        split: "train", "validation", "test" or "all".
        labels, speakers: field of the class and of the speaker; None: there are no classes or no speakers.
        holdout: the recordings in which every field of this mapping has one of the given values are the validation
            part, all others the training part; None: ``splits`` divides them.
        splits: ratios of training, validation and test recordings.
        order: "shuffled": ``splits`` applies to the recordings of each class, in the order of a hash of ``seed`` and
            their names; "name": it applies to all recordings in the natural order of their names.
        seed: seed of the shuffled order.
    """

    split: str
    labels: str | None = None
    speakers: str | None = None
    holdout: Mapping[str, object] | None = None
    splits: tuple[float, ...] = (0.88, 0.06, 0.06)
    order: str = "shuffled"
    seed: int = 0


@dataclass(frozen=True)
class Part:
    """The chosen part of a data set.

    Attributes:
        files: the recordings.
        labels, speakers: index of the class and of the speaker of each; -1 without classes, None without speakers.
        class_names, speaker_names: their names in the whole data set in natural order, or None.
    """

    files: list[Path]
    labels: list[int]
    class_names: list[str] | None = None
    speakers: list[int] | None = None
    speaker_names: list[str] | None = None


def choose_part(
    usable: Fields, names: Sequence[str], root: Path, wanted: Wanted, known: Mapping[Path, str] | None = None
) -> Part:
    """Return the requested part of a data set.

    Args:
        usable: fields of every usable recording, in the order of the data set.
        names: the fields that exist.
        root: the data set; the names of the recordings are their paths in it.
        wanted: the request.
        known: recordings whose part the data set determines; the others are divided.

    Raises:
        UserError: the part is empty, or ``holdout`` names a field or a value that does not exist.
    """
    classes = {file: own[wanted.labels] if wanted.labels else "" for file, own in usable.items()}
    known = known or {}
    free = {file: own for file, own in usable.items() if file not in known}
    if wanted.holdout:
        parts = _held_out(free, wanted.holdout, names)
    elif wanted.order == "name":
        parts = by_name(list(free), root, wanted.splits)
    else:
        parts = _shuffled({file: classes[file] for file in free}, root, wanted.splits, wanted.seed)
    parts |= known
    chosen = [file for file in usable if wanted.split in ("all", parts[file])]
    if not chosen:
        divided_classes = len(set(classes.values())) if wanted.labels and wanted.order == "shuffled" else 0
        raise UserError(_empty_split(root, wanted.split, len(usable), bool(wanted.holdout), divided_classes))
    labels, class_names = _numbered(classes, chosen) if wanted.labels else ([-1] * len(chosen), None)
    if not wanted.speakers:
        return Part(chosen, labels, class_names)
    return Part(chosen, labels, class_names, *_numbered({f: own[wanted.speakers] for f, own in usable.items()}, chosen))


def _numbered(values: Mapping[Path, str], chosen: Sequence[Path]) -> tuple[list[int], list[str]]:
    """Return the value of each of the ``chosen`` files as an index, and the names of all values in natural order."""
    names = sorted(set(values.values()), key=natural_order)
    index = {name: number for number, name in enumerate(names)}
    return [index[values[file]] for file in chosen], names


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
        validation, test = held_out_counts(len(ordered), splits)
        for rank, (_, file) in enumerate(sorted(ordered)):
            parts[file] = "validation" if rank < validation else "test" if rank < validation + test else "train"
    return parts


def by_name(files: Sequence[Path], root: Path, splits: Sequence[float]) -> dict[Path, str]:
    """Return the split of each file by its position in the natural order of paths; boundaries are rounded down."""
    ordered = sorted(files, key=lambda file: natural_order(file.relative_to(root).as_posix()))
    validation, test = held_out_counts(len(files), splits)
    # 0.94 of 50 files is 47, although 0.94 has no exact binary representation.
    first = min(int(splits[0] * len(files) + 1e-9), len(files) - validation - test)
    second = min(int((splits[0] + splits[1]) * len(files) + 1e-9), len(files) - test)
    first, second = max(first, int(splits[0] > 0)), max(second, first + validation)
    return {
        file: "train" if rank < first else "validation" if rank < second else "test"
        for rank, file in enumerate(ordered)
    }


def held_out_counts(files: int, splits: Sequence[float]) -> tuple[int, int]:
    """Return the numbers of validation and test files by their ratios, rounded.

    A ratio above zero gives at least one file. If there are too few files, one for training comes first.
    """
    train, validation, test = splits
    available = files - (train > 0)
    wanted = max(1, round(validation * files)) if validation > 0 else 0
    validation_files = min(wanted, max(1, available - (test > 0)), available)
    wanted = max(1, round(test * files)) if test > 0 else 0
    return validation_files, min(wanted, available - validation_files)


def check_division(splits: Sequence[float], order: str) -> None:
    """Raise UserError if ``splits`` or ``order`` of :class:`Wanted` cannot be used."""
    if len(splits) != 3 or min(splits) < 0 or abs(sum(splits) - 1) > 1e-6:
        raise UserError(f"splits must be three ratios (training, validation, test) that add up to 1, got {splits!r}")
    if order not in ORDERS:
        raise UserError(f"unknown order {order!r}: expected one of {', '.join(ORDERS)}")


def _empty_split(root: Path, split: str, files: int, held_out: bool, classes: int) -> str:
    empty = f"the {split} split of {printable(root)} is empty"
    if held_out and split == "test":
        return (
            f"{empty}: holdout divides its {files} files into train and validation only; "
            "set data.test=false to train without test data"
        )
    if held_out:
        matching = "all" if split == "train" else "none"
        return f"{empty}: holdout matches {matching} of its {files} files; change holdout"
    if classes > 1:
        return (
            f"{empty}: splits divide the files of each class, and its {files} usable files have {classes} classes, too "
            "few files in each. Add files, read other labels (data.pattern), or change splits"
        )
    return (
        f"{empty}: it has {files} usable files, and splits are made of whole files. "
        "Add files, cut them into shorter ones, or change splits"
    )
