"""Reading of the key of a listening test and of the files that raters saved."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.paths import read_bytes, read_json
from sashimi_diffusion.terminal import printable
from sashimi_evaluation.listening_test.ratings import COLUMNS, DIVERSITY, RATINGS, allowed


@dataclass(frozen=True)
class Key:
    """The key of a listening test.

    Attributes:
        test: id of the test.
        ratings: the questions, see :mod:`.ratings`.
        methods: method by item; an item is the neutral name of a clip or of a batch of all clips of a method.
        labels: requested digit by clip; clips without a known digit are missing.
        batches: the items that are batches.
    """

    test: str
    ratings: tuple[str, ...]
    methods: Mapping[str, str]
    labels: Mapping[str, int]
    batches: frozenset[str]


@dataclass(frozen=True)
class Answer:
    """The answer of a rater to one question about one item.

    Attributes:
        rater: name of the rater.
        item: neutral name of the clip or of the batch.
        rating: the question, one of ``RATINGS``.
        value: the answer, one of ``allowed(rating)``.
    """

    rater: str
    item: str
    rating: str
    value: str


def read_key(path: Path | str) -> Key:
    """Read a key that ``write_listening_test`` wrote.

    Raises:
        UserError: the file cannot be read, or is not a key.
    """
    what = "the .key.json file next to the folder of a listening test"
    content = read_json(path, what)
    try:
        clips, batches = content["clips"], content["batches"]
        methods = {name: clip["method"] for name, clip in clips.items()} | batches
        labels = {name: clip["label"] for name, clip in clips.items() if clip["label"] is not None}
        key = Key(content["test"], tuple(content["ratings"]), methods, labels, frozenset(batches))
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{printable(path)} is not the key of a listening test: expected {what}") from error
    if not _is_valid(key):
        raise UserError(f"{printable(path)} is not the key of a listening test, or is damaged: expected {what}")
    return key


def _is_valid(key: Key) -> bool:
    """Return whether the content of a file has the types and the values of a key."""
    digits: list[Any] = list(range(10))
    return (
        all(isinstance(text, str) for text in (key.test, *key.methods.values()))
        and all(rating in RATINGS for rating in key.ratings)
        and all(label in digits and not isinstance(label, bool | float) for label in key.labels.values())
    )


def read_answers(paths: Sequence[Path | str], key: Key) -> list[Answer]:
    """Read the files that raters saved.

    Raises:
        UserError: a file belongs to another test, lacks columns, or has an answer that is not allowed, an unknown item
            or an item that the same rater has already rated. The message contains the file and the line.
    """
    answers: list[Answer] = []
    seen: dict[tuple[str, str], str] = {}
    for path in paths:
        for place, row in _rows(Path(path)):
            _check_row(row, key, place)
            rater, item = row["rater"], row["item"]
            first = seen.setdefault((rater, item), place)
            if first != place:
                raise UserError(f"{place}: rater {rater!r} has already rated {item} ({first}): keep one of the two")
            for rating in _questions(key, item):
                if row[rating] not in allowed(rating):
                    raise UserError(
                        f"{place}: {rating} of {item} is {row[rating]!r}, expected one of {', '.join(allowed(rating))}"
                    )
                answers.append(Answer(rater, item, rating, row[rating]))
    if not answers:
        raise UserError("there are no ratings in the files: expected the CSV files that raters saved")
    return answers


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    name = printable(path)
    content = read_bytes(path, "a CSV file that a listening test saved")
    try:
        reader = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""))  # spreadsheets add a mark
        columns = reader.fieldnames or ()
        missing = [column for column in COLUMNS if column not in columns]
        if missing:
            raise UserError(f"{name}, line 1: the column {missing[0]!r} is missing, expected {', '.join(COLUMNS)}")
        for row in reader:
            place = f"{name}, line {reader.line_num}"
            if None in row or None in row.values():
                raise UserError(f"{place}: expected {len(columns)} values, as many as column names")
            yield place, row
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{name} is not a CSV file that a listening test saved ({error})") from error


def _check_row(row: Mapping[str, str], key: Key, place: str) -> None:
    if row["test"] != key.test:
        raise UserError(f"{place}: the answers belong to the test {row['test']!r}, the key belongs to {key.test!r}")
    if row["item"] not in key.methods:
        raise UserError(f"{place}: the test has no item {row['item']!r}")
    if not row["rater"]:
        raise UserError(f"{place}: the rater is missing")


def _questions(key: Key, item: str) -> list[str]:
    return [rating for rating in RATINGS if rating in key.ratings and (rating == DIVERSITY) == (item in key.batches)]
