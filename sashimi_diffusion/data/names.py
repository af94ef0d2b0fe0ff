"""Read fields from file names by a pattern such as ``{label}_{speaker}_{index}``, and select files by their fields."""

import re
import string
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.suggestions import did_you_mean
from sashimi_diffusion.terminal import printable

FOLDER = "folder"
"""The field that every pattern has: the first sub-folder in the path of a file."""

Fields = dict[Path, dict[str, str]]
"""File -> field -> value."""


def field_names(pattern: str | None) -> list[str]:
    """Return the names of the fields of a pattern in their order, with ``folder`` first.

    Raises:
        UserError: the pattern is malformed, has no field, has a field twice, or has a field called ``folder``.
    """
    return [FOLDER, *(_compile(pattern).groupindex if pattern is not None else [])]


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
    expression = None if pattern is None else _compile(pattern)
    levels = (pattern or "").count("/") + 1
    fields: Fields = {}
    bad: dict[Path, str] = {}
    for file in files:
        relative = file.relative_to(root)
        own = {FOLDER: relative.parts[0]} if len(relative.parts) > 1 else {}
        if expression is not None:
            match = expression.fullmatch("/".join(relative.with_suffix("").parts[-levels:]))
            if match is None:
                bad[file] = f"its name is not of the form {printable(pattern)}"
                continue
            own |= match.groupdict()
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
    shown = ", ".join(map(printable, known[:20])) + (", ..." if len(known) > 20 else "")
    hint = did_you_mean(value, known, separator="; ")
    raise UserError(f"{complaint} {value!r}, but {introduction} {shown or 'none'}{hint}")


def _compile(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a pattern, in which a field is one or more characters without a slash."""
    try:
        expression = "".join(
            re.escape(text) + (f"(?P<{name}>[^/]+?)" if name is not None else "")
            for text, name, _, _ in string.Formatter().parse(pattern)
        )
        compiled = re.compile(expression)
        if not compiled.groups or FOLDER in compiled.groupindex:
            raise ValueError(f"it needs at least one field, and none called {FOLDER}")
    except (ValueError, re.error) as error:
        raise UserError(
            f"the file name pattern {pattern!r} cannot be used ({error}): expected names in braces, "
            "such as {label}_{speaker}_{index}"
        ) from error
    return compiled
