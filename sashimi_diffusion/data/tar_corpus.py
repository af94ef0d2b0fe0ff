"""The recordings of several tar files (shards) as one corpus: their names, labels, speakers and parts."""

import hashlib
import json
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sashimi_diffusion.data.names import FOLDER, field_names, is_text, natural_order, read_fields
from sashimi_diffusion.data.tar_index import ShardIndex, key_of
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.paths import entries, expanded, is_folder, status
from sashimi_diffusion.terminal import listed, printable

AUTOMATIC = "cls member, or label in the json member"
"""Value of ``labels`` of :class:`Request`."""
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)", re.ASCII)
_MOST_SHARDS = 100_000


@dataclass(frozen=True)
class Request:
    """Where the labels of recordings are, and how recordings are divided.

    Attributes:
        pattern: pattern of the names without endings, or None.
        labels: field of the class: a field of ``pattern``, the ending of a member with the label as text ("cls",
            "txt"), or a key of the member ending in "json". ``AUTOMATIC``: the field ``label`` of ``pattern``; without
            a pattern ``cls``, otherwise ``label``; or no classes. None: there are no classes.
        speakers: field of the speaker, or None.
        splits: ratios of training, validation and test recordings.
        seed: seed of the division.
    """

    pattern: str | None
    labels: str | None
    speakers: str | None
    splits: tuple[float, ...]
    seed: int

    @property
    def label_fields(self) -> list[str]:
        """The fields that may be the class, in the order in which they are tried."""
        if self.labels != AUTOMATIC:
            return [] if self.labels is None else [self.labels]
        if self.pattern is not None:
            return ["label"] if "label" in field_names(self.pattern) else []
        return ["cls", "label"]

    @property
    def texts(self) -> list[str]:
        """The fields that are texts in the shards, not in the names."""
        fields = [*self.label_fields, *([] if self.speakers is None else [self.speakers])]
        return [name for name in dict.fromkeys(fields) if name not in self.named]

    @property
    def named(self) -> list[str]:
        """The fields of the pattern."""
        return [] if self.pattern is None else [name for name in field_names(self.pattern) if name != FOLDER]


@dataclass
class Corpus:
    """All recordings of the shards that the index does not refuse.

    Attributes:
        shard, number: shard of each recording and its number there, int32 (recordings,).
        share: place of its name among all names, in [0, 1), float64 (recordings,).
        classes, speakers: index of the class and of the speaker of each, int64, and their names; None if there are
            none. -1: it has none.
        bad: name -> reason.
        digest: hash of the names, sizes and texts of all recordings.
        contents: hash of some bytes of each, see :class:`ShardIndex`.
    """

    shard: np.ndarray
    number: np.ndarray
    share: np.ndarray
    classes: tuple[np.ndarray, list[str]] | None
    speakers: tuple[np.ndarray, list[str]] | None
    bad: dict[Path, str]
    digest: bytes
    contents: bytes

    def part(self, split: str, splits: Sequence[float]) -> np.ndarray:
        """Return the indices of the recordings of a part that have all requested labels."""
        held_out, test = self.share < splits[1], self.share < splits[1] + splits[2]
        chosen = {"validation": held_out, "test": test & ~held_out, "train": ~test, "all": np.ones_like(test)}[split]
        for labels in (self.classes, self.speakers):
            chosen = chosen if labels is None else chosen & (labels[0] >= 0)
        return np.flatnonzero(chosen)


def find_shards(path: str) -> list[Path]:
    """Return the tar files of a folder in natural order, those of a pattern with braces in its order, or one tar file.

    Raises:
        UserError: there is none, or one of a pattern does not exist.
    """
    chosen = expanded(path)
    if status(chosen) is None and "{" in path:
        shards = [expanded(text) for text in expand_braces(path)]
        missing = [shard for shard in shards if status(shard) is None]
        if missing:
            raise UserError(
                f"{len(missing)} of {len(shards)} tar files of data.path {printable(path)} do not exist: "
                f"{listed(missing, 3)}"
            )
        return shards
    if not is_folder(chosen):
        return [chosen]
    found = [file for file in entries(chosen) if file.name.endswith(".tar") and not file.name.startswith(".")]
    if not found:
        raise UserError(f"no tar file in {printable(chosen)}: expected files ending in .tar, not compressed")
    return sorted(found, key=lambda file: natural_order(file.name))


def expand_braces(text: str) -> list[str]:
    """Return the texts of a pattern: ``{000..010}`` stands for each number, ``{a,b}`` for each of the words.

    Raises:
        UserError: the content of braces is neither, or the pattern has too many texts.
    """
    found = _BRACES.search(text)
    if found is None:
        return [text]
    numbers = _RANGE.fullmatch(found[1])
    if numbers:
        first, last = int(numbers[1]), int(numbers[2])
        if not 0 <= last - first < _MOST_SHARDS:
            raise UserError(
                f"data.path {printable(text)}: {found[0]} must count up, to at most {_MOST_SHARDS:,} numbers"
            )
        choices = [f"{number:0{len(numbers[1])}d}" for number in range(first, last + 1)]
    elif "," in found[1]:
        choices = found[1].split(",")
    else:
        raise UserError(
            f"data.path {printable(text)}: {printable(found[0])} is no range such as {{000..099}} and no list such as "
            "{a,b}"
        )
    texts = [rest for choice in choices for rest in expand_braces(text[: found.start()] + choice + text[found.end() :])]
    if len(texts) > _MOST_SHARDS:
        raise UserError(f"data.path {printable(text)} stands for more than {_MOST_SHARDS:,} tar files")
    return texts


def read_corpus(shards: Sequence[Path], index: Callable[[Path], ShardIndex], request: Request) -> Corpus:
    """Return the recordings of all shards.

    Args:
        shards: the tar files.
        index: a function from a shard to its index, which has the texts of ``request``.
        request: the labels and the division.

    Raises:
        UserError: no recording has a requested field.
    """
    found = _Collector(request)
    for number, path in enumerate(shards):
        found.add(number, path, index(path))
    classes = speakers = None
    present = [name for name in request.label_fields if found.labels[name].given]
    if present:
        classes = found.labels[present[0]]
    for purpose, chosen in (("label_column", request.labels), ("speakers", request.speakers)):
        if chosen not in (None, AUTOMATIC) and not found.labels[str(chosen)].given:
            raise UserError(
                f"data.{purpose} is {chosen!r}, but no recording has it: expected a field of data.pattern, the ending "
                "of a member with text such as cls or txt, or a key of the member ending in json"
            )
    if request.speakers is not None:
        speakers = found.labels[request.speakers]
    for labels, what in ((classes, "label"), (speakers, "speaker")):
        for place, reason in labels.missing(what) if labels is not None else ():
            path = shards[found.shard[place]]
            found.bad[path / index(path).members[found.number[place]].name] = reason
    return Corpus(
        np.asarray(found.shard, dtype=np.int32),
        np.asarray(found.number, dtype=np.int32),
        np.asarray(found.share),
        None if classes is None else classes.numbered(),
        None if speakers is None else speakers.numbered(),
        found.bad,
        found.digest.digest(),
        found.contents.digest(),
    )


@dataclass
class _Labels:
    """The values of a field, numbered in the order in which they appear."""

    names: dict[str, int] = field(default_factory=dict)
    of: array = field(default_factory=lambda: array("q"))
    not_text: dict[int, str] = field(default_factory=dict)  # the others, by recording

    def add(self, text: str | None) -> None:
        if text is not None and not is_text(text):
            self.not_text[len(self.of)] = text
            text = None
        self.of.append(-1 if text is None else self.names.setdefault(text, len(self.names)))

    @property
    def given(self) -> bool:
        """Whether any recording has the field."""
        return bool(self.names or self.not_text)

    def missing(self, what: str) -> Iterator[tuple[int, str]]:
        """Yield the number of each recording without a label that can be used, and the reason."""
        for place in map(int, np.flatnonzero(np.asarray(self.of) < 0)):
            wrong = self.not_text.get(place)
            yield place, f"it has no {what}" if wrong is None else f"its {what} is not valid text ({printable(wrong)})"

    def numbered(self) -> tuple[np.ndarray, list[str]]:
        """Return the number of each value, -1 for none, and the values in natural order."""
        ordered = sorted(self.names, key=natural_order)
        numbers = np.full(len(ordered) + 1, -1)  # the last is that of no value
        for number, name in enumerate(ordered):
            numbers[self.names[name]] = number
        return numbers[np.asarray(self.of, dtype=np.int64)], ordered


class _Collector:
    """The recordings of the shards that were added."""

    def __init__(self, request: Request) -> None:
        self._request = request
        self.shard, self.number, self.share = array("i"), array("i"), array("d")
        fields = [*request.label_fields, *([] if request.speakers is None else [request.speakers])]
        self.labels = {name: _Labels() for name in fields}
        self.bad: dict[Path, str] = {}
        self.digest, self.contents = hashlib.sha256(), hashlib.sha256()

    def add(self, number: int, path: Path, index: ShardIndex) -> None:
        """Add the recordings of a shard."""
        self.bad |= {path / name if name else path: reason for name, reason in index.bad.items()}
        self.contents.update(index.sample.encode())
        self.digest.update(json.dumps([[m.name, m.size, sorted(m.texts.items())] for m in index.members]).encode())
        for place, member in enumerate(index.members):
            key = key_of(member.name)
            texts: dict[str, Any] = member.texts
            if self._request.pattern is not None:
                file = Path(f"{key.lstrip('/')}.wav")
                fields, misnamed = read_fields([file], Path(), self._request.pattern)
                if misnamed:
                    self.bad[path / member.name] = misnamed[file]
                    continue
                texts = texts | fields[file]
            self.shard.append(number)
            self.number.append(place)
            digest = hashlib.sha256(f"{self._request.seed}:{key}".encode("utf-8", "surrogatepass")).digest()
            self.share.append(int.from_bytes(digest[:8], "big") / 2**64)
            for name, labels in self.labels.items():
                labels.add(texts.get(name))
