"""Read fields from file names by a pattern such as ``{label}_{speaker}_{index}``, and select files by their fields."""

import re
import string
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.suggestions import did_you_mean
from sashimi_diffusion.terminal import listed, printable

FOLDER = "folder"
"""The field that every pattern has: the first sub-folder in the path of a file."""

Fields = dict[Path, dict[str, str]]
"""File -> field -> value."""


def field_names(pattern: str | None) -> list[str]:
    """Return the names of the fields of a pattern in their order, with ``folder`` first.

    Raises:
        UserError: the pattern is malformed, has no field, has a field twice, or has a field called ``folder``.
    """
    parts = [] if pattern is None else _parsed(pattern)
    return [FOLDER, *(name for part in parts for name in part.names)]


def read_fields(files: Sequence[Path], root: Path, pattern: str | None) -> tuple[Fields, dict[Path, str]]:
    """Read the fields of file names.

    The pattern is compared with the file name without its ending, and with as many folders above it as the pattern has
    slashes.

    Args:
        files: files in ``root`` and its sub-folders.
        root: folder of the data set.
        pattern: pattern of the names; None reads only the field ``folder``.

    Returns:
        The fields of the files that match ``pattern``, and a reason for each file that does not.
    """
    parts = None if pattern is None else _parsed(pattern)
    fields: Fields = {}
    bad: dict[Path, str] = {}
    for file in files:
        relative = file.relative_to(root)
        own = {FOLDER: relative.parts[0]} if len(relative.parts) > 1 else {}
        if parts is not None:
            values = _match(parts, relative.with_suffix("").parts[-len(parts) :])
            if values is None:
                bad[file] = f"its name is not of the form {printable(pattern)}"
                continue
            own |= values
        fields[file] = own
    return fields, bad


def select(fields: Fields, wanted: Mapping[str, object], names: Sequence[str], purpose: str) -> list[Path]:
    """Return the files in which every field of ``wanted`` has one of the given values.

    Args:
        fields: fields of all files.
        wanted: field -> a value or several values. Values are compared as text, so 7 means "7".
        names: the fields that exist.
        purpose: name of the setting that selects, for error messages.

    Raises:
        UserError: ``wanted`` names a field that does not exist, or a value that no file has.
    """
    choices = {}
    for name, values in wanted.items():
        require(name, names, f"{purpose} names the field", "the fields are")
        several = values if isinstance(values, Iterable) and not isinstance(values, str) else [values]
        choices[name] = {str(value) for value in several}
        present = {own[name] for own in fields.values() if name in own}
        for value in choices[name]:
            require(value, sorted(present), f"{purpose} asks for {name}", "there are")
    return [file for file, own in fields.items() if all(own.get(name) in choices[name] for name in choices)]


def is_text(value: str) -> bool:
    """Return whether a label can be written to files: without lone surrogates.

    Names with bytes that are not UTF-8 have them, and JSON may.
    """
    return not any("\ud800" <= character <= "\udfff" for character in value)


def not_text(fields: Fields, wanted: Mapping[str, str | None]) -> dict[Path, str]:
    """Return the files with a label that is no valid text, with a reason.

    Args:
        fields: fields of the files.
        wanted: "label" and "speaker" -> the field that gives it, or None.
    """
    return {
        file: f"its {what} is not valid text ({printable(own[field])})"
        for what, field in wanted.items()
        for file, own in fields.items()
        if field in own and not is_text(own[field])
    }


def natural_order(text: str) -> list[tuple[bool, int, str]]:
    """Return a sort key that puts 2 before 10 and numbers before words."""
    pieces = re.findall(r"\d+|\D+", text)
    return [_number(piece) if piece.isdecimal() else (True, 0, piece) for piece in pieces]


def _number(digits: str) -> tuple[bool, int, str]:
    """Return a sort key of decimal digits of any script: numbers with more digits are larger."""
    # int() refuses thousands of digits.
    significant = "".join(str(unicodedata.decimal(digit)) for digit in digits).lstrip("0")
    return False, len(significant), significant


def require(value: str, known: Sequence[str], complaint: str, introduction: str) -> None:
    """Check that ``value`` is in ``known``.

    Args:
        value: the text to check.
        known: the valid texts.
        complaint: beginning of the error message, before the value.
        introduction: text of the error message before the list of ``known``.

    Raises:
        UserError: it is not; the message suggests the most similar entry.
    """
    if value in known:
        return
    hint = did_you_mean(value, known, separator="; ")
    raise UserError(f"{complaint} {value!r}, but {introduction} {listed(known, 20) or 'none'}{hint}")


@dataclass(frozen=True)
class _PatternPart:
    """The part of a pattern between two slashes.

    Args:
        names: names of its fields.
        texts: the text before each field, and the text after the last field.
    """

    names: tuple[str, ...]
    texts: tuple[str, ...]

    def match(self, name: str) -> dict[str, str] | None:
        """Return the value of each field, at least one character and as few as possible; None if ``name`` differs."""
        if not self.names:
            return {} if name == self.texts[0] else None
        first, *between, last = self.texts
        start, end = len(first), len(name) - len(last)
        if not (name.startswith(first) and name.endswith(last)):
            return None
        values = {}
        # Each search starts where the one before it ended. A regular expression would also try all later places, and
        # its time grows with the length of the name to the power of the number of fields.
        for field, text in zip(self.names, between, strict=False):
            found = name.find(text, start + 1, end)
            if found < 0:
                return None
            values[field] = name[start:found]
            start = found + len(text)
        values[self.names[-1]] = name[start:end]
        return values if start < end else None


def _match(parts: Sequence[_PatternPart], names: Sequence[str]) -> dict[str, str] | None:
    """Return the values of all fields, or None if the folders and the file called ``names`` do not match."""
    if len(names) != len(parts):
        return None
    values: dict[str, str] = {}
    for part, name in zip(parts, names, strict=True):
        own = part.match(name)
        if own is None:
            return None
        values |= own
    return values


def _parsed(pattern: str) -> list[_PatternPart]:
    """Return the parts of a pattern, one for each folder and one for the file name."""
    try:
        parts = [_parsed_part(part) for part in pattern.split("/")]
        names = [name for part in parts for name in part.names]
        if not names or FOLDER in names:
            raise ValueError(f"it needs at least one field, and none called {FOLDER}")
        if len(set(names)) < len(names):
            raise ValueError("it has a field twice")
    except ValueError as error:
        raise UserError(
            f"the file name pattern {pattern!r} cannot be used ({error}): expected names in braces, "
            "such as {label}_{speaker}_{index}"
        ) from error
    return parts


def _parsed_part(part: str) -> _PatternPart:
    names, texts = [], [""]
    for text, name, form, conversion in string.Formatter().parse(part):
        texts[-1] += text
        if name is None:
            continue
        if not name.isidentifier() or form or conversion or f"{{{name}}}" not in part:  # the form of {a:} is empty
            raise ValueError(f"braces have the name of a field and nothing else, not {_shown(name, form, conversion)}")
        names.append(name)
        texts.append("")
    return _PatternPart(tuple(names), tuple(texts))


def _shown(name: str, form: str | None, conversion: str | None) -> str:
    return repr(name + (f"!{conversion}" if conversion else "") + (f":{form}" if form else ""))
