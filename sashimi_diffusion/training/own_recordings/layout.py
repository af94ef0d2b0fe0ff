"""Find out what sub-folders and file names say about recordings: which part is the class, and which the speaker."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sashimi_diffusion.data.names import FOLDER, field_names, read_fields

MAX_CLASSES = 1000
"""The largest number of classes that is recognized. With more, a class has few recordings."""

_MATCHING = 0.95  # smallest share of the files to which a pattern must apply
_SEPARATORS = ("_", "-", " ", ".")
_MAX_FIELDS = 8
_FILES_PER_VALUE = {"folder": 2, "field": 3}  # smallest mean number of files of a class, in sub-folders and in names
_SPLIT_NAMES = {"train", "training", "valid", "validation", "val", "dev", "devel", "test", "testing", "eval"}
_COUNTER = re.compile(r"(0\d|\d{4}).*")  # padded with zeros, or a year or another large number: no name of a class


@dataclass(frozen=True)
class Layout:
    """What the paths of recordings say about them.

    Args:
        pattern: the setting ``data.pattern``; None: no pattern, the first sub-folder is the class if there are classes.
        labels: class of each file; empty: no classes.
        speakers: speaker of each file; empty: no speakers.
        unmatched: files to which the pattern does not apply, with the reason.
        note: why there are no classes although something looks like one; "" otherwise.
    """

    pattern: str | None
    labels: Mapping[Path, str] = field(default_factory=dict)
    speakers: Mapping[Path, str] = field(default_factory=dict)
    unmatched: Mapping[Path, str] = field(default_factory=dict)
    note: str = ""

    @property
    def source(self) -> str:
        """Where the classes are, in words."""
        return "the first sub-folder" if self.pattern is None else f"the pattern {self.pattern}"


def layout_of_pattern(files: Sequence[Path], root: Path, pattern: str) -> Layout:
    """Return the layout that a user describes; ``{label}`` is the class and ``{speaker}`` the speaker.

    Raises:
        UserError: the pattern is malformed.
    """
    names = field_names(pattern)
    fields, unmatched = read_fields(files, root, pattern)
    labels, speakers = (
        {file: own[name] for file, own in fields.items()} if name in names else {} for name in ("label", "speaker")
    )
    return Layout(pattern, labels, speakers, unmatched)


def find_layout(files: Sequence[Path], root: Path) -> Layout:
    """Return the layout of files in ``root``.

    The class is a sub-folder or a field of the file names that has few values, with several files each. Of several
    such parts of the path, the first is the class; another one is the speaker if it occurs with most of the classes.
    A number that tells files apart is an index.
    """
    if not files:
        return Layout(None)
    found = [layout for pattern in _patterns(files, root) if (layout := _classified(files, root, pattern))]
    best = max(found, key=lambda layout: (bool(layout.labels), bool(layout.speakers)))
    if best.labels:
        return best
    return Layout(None, note=next((layout.note for layout in found if layout.note), ""))


def _patterns(files: Sequence[Path], root: Path) -> Iterator[str | None]:
    """Yield patterns that apply to most files: without fields, with all folders, and with the fields of the names."""
    yield None
    paths = [file.relative_to(root).with_suffix("").parts for file in files]
    depth, count = Counter(len(path) - 1 for path in paths).most_common(1)[0]
    depth = depth if count >= _MATCHING * len(files) else 0
    folders = "".join(f"{{folder{level}}}/" for level in range(1, depth + 1))
    if depth > 1:
        yield folders + "{name}"
    for separator in _SEPARATORS:
        counts = sorted(path[-1].count(separator) + 1 for path in paths)
        common = min(counts[int((1 - _MATCHING) * len(counts))], _MAX_FIELDS)
        if common > 1:
            yield folders + separator.join(f"{{field{number}}}" for number in range(1, common + 1))


def _classified(files: Sequence[Path], root: Path, pattern: str | None) -> Layout | None:
    """Return the layout with this pattern; None if it does not apply to most files."""
    fields, unmatched = read_fields(files, root, pattern)
    if pattern is None:
        unmatched = {file: "in no sub-folder, so it has no label" for file, own in fields.items() if not own}
    matched = [file for file in files if file not in unmatched]
    if len(matched) < _MATCHING * len(files):
        return Layout(pattern) if pattern is None else None
    columns = {name: [fields[file][name] for file in matched] for name in field_names(pattern) if name != FOLDER}
    if pattern is None:
        columns = {FOLDER: [fields[file][FOLDER] for file in matched]}
    index = _index(columns)
    others = {name: values for name, values in columns.items() if name not in (index, "name")}
    candidates = [name for name, values in others.items() if _has_few_values(name, values)]
    label = next((name for name in candidates if not any(map(_COUNTER.fullmatch, columns[name]))), None)
    if label is None:
        return Layout(pattern, note=_about_too_many(others))
    speaker = next((name for name in candidates if _occurs_with_most(columns[name], columns[label], name, label)), None)
    return Layout(
        None if label == FOLDER else _renamed(pattern or "", label, speaker, index),
        dict(zip(matched, columns[label], strict=True)),
        {} if speaker is None else dict(zip(matched, columns[speaker], strict=True)),
        unmatched,
    )


def _index(columns: Mapping[str, Sequence[str]]) -> str | None:
    """Return the last field of the names that is a number without which files would have equal fields."""
    for name in reversed(list(columns)):
        others = list(zip(*(values for other, values in columns.items() if other != name), strict=True))
        numbers = name.startswith("field") and all(value.isdecimal() for value in columns[name])
        if numbers and len(set(others)) < len(columns[name]):
            return name
    return None


def _has_few_values(name: str, values: Sequence[str]) -> bool:
    """Return whether the values may be classes or speakers: few, with several files each."""
    distinct = set(values)
    if name.startswith(FOLDER) and {value.lower() for value in distinct} <= _SPLIT_NAMES:
        return False
    return 2 <= len(distinct) <= min(MAX_CLASSES, len(values) / _files_per_value(name))


def _files_per_value(name: str) -> int:
    return _FILES_PER_VALUE["folder" if name.startswith(FOLDER) else "field"]


def _occurs_with_most(values: Sequence[str], labels: Sequence[str], name: str, label: str) -> bool:
    """Return whether the values of another field occur with at least half of all labels."""
    pairs = len(set(zip(values, labels, strict=True)))
    return name != label and pairs >= 0.5 * len(set(values)) * len(set(labels))


def _about_too_many(columns: Mapping[str, Sequence[str]]) -> str:
    """Return that there are too many classes, or ""."""
    for name, values in columns.items():
        distinct = len(set(values))
        if MAX_CLASSES < distinct <= len(values) / _files_per_value(name):
            where = "sub-folders" if name.startswith(FOLDER) else "values of a field of the file names"
            return f"{distinct:,} {where} are more than {MAX_CLASSES:,} classes, so they are not used as labels"
    return ""


def _renamed(pattern: str, label: str, speaker: str | None, index: str | None) -> str:
    """Return a pattern in which the fields have the names of their roles."""
    roles = {label: "label", speaker: "speaker", index: "index"}
    return re.sub(r"\{(\w+)\}", lambda match: f"{{{roles.get(match[1], match[1])}}}", pattern)
