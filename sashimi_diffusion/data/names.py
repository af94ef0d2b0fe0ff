"""What file names say: fields read by a pattern such as ``{label}_{speaker}_{index}``, and files chosen by them."""

import re
import string
from collections.abc import Mapping, Sequence
from pathlib import Path

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.suggestions import nearest_name

FOLDER = "folder"  # the field every pattern has: the first sub-folder a file lies in

Fields = dict[Path, dict[str, str]]


def field_names(pattern: str | None) -> list[str]:
    """The fields of a pattern in their order, with ``folder`` first.

    Raises:
        UserError: the pattern is malformed, has no field, or names one twice or ``folder``.
    """
    return [FOLDER, *(_compile(pattern).groupindex if pattern is not None else [])]


def read_fields(files: Sequence[Path], root: Path, pattern: str | None) -> tuple[Fields, dict[Path, str]]:
    """Reads the fields of each file's name (without its ending) and of as many folders as the pattern has slashes.

    Returns:
        The fields of the files that are named like ``pattern``, and a reason for each file that is not.
    """
    expression = _compile(pattern) if pattern is not None else None
    fields: Fields = {}
    bad: dict[Path, str] = {}
    for file in files:
        relative = file.relative_to(root)
        own = {FOLDER: relative.parts[0]} if len(relative.parts) > 1 else {}
        if expression is not None:
            levels = pattern.count("/") + 1
            match = expression.fullmatch("/".join(relative.with_suffix("").parts[-levels:]))
            if match is None:
                bad[file] = f"its name is not of the form {pattern}"
                continue
            own |= match.groupdict()
        fields[file] = own
    return fields, bad


def select(fields: Fields, wanted: Mapping[str, object], names: Sequence[str], purpose: str) -> list[Path]:
    """The files whose every field named in ``wanted`` has one of the values given there.

    Args:
        fields: of all files.
        wanted: one value or several for each field; values are compared as text, so 7 means "7".
        names: the fields there are.
        purpose: what the choice is for, named in errors.

    Raises:
        UserError: ``wanted`` names a field there is not, or a value that no file has; the nearest one is named.
    """
    choices = {}
    for name, values in wanted.items():
        require(name, names, f"{purpose} names the field", "the fields are")
        several = isinstance(values, Sequence | set) and not isinstance(values, str)
        choices[name] = {str(value) for value in (values if several else [values])}
        present = {own[name] for own in fields.values() if name in own}
        for value in choices[name]:
            require(value, sorted(present), f"{purpose} asks for {name}", "there are")
    return [file for file, own in fields.items() if all(own.get(name) in choices[name] for name in choices)]


def natural_order(text: str) -> list[tuple[bool, int, str]]:
    """Sort key that puts 2 before 10 and numbers before words."""
    pieces = re.findall(r"\d+|\D+", text)
    return [(False, int(piece), "") if piece.isdigit() else (True, 0, piece) for piece in pieces]


def require(value: str, known: Sequence[str], complaint: str, introduction: str) -> None:
    """Raise UserError, naming the nearest of ``known``, if ``value`` is none of them."""
    if value in known:
        return
    near = nearest_name(value, known)
    hint = "" if near is None else f"; did you mean {near!r}?"
    shown = ", ".join(known[:20]) + (", ..." if len(known) > 20 else "")
    raise UserError(f"{complaint} {value!r}, but {introduction} {shown or 'none'}{hint}")


def _compile(pattern: str) -> re.Pattern:
    """The regular expression of a pattern: every field takes at least one character, and no slash."""
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
