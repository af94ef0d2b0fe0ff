"""Check the arguments of a constructor against its annotations and a table of ranges, before anything is allocated."""

import inspect
import reprlib
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.terminal import printable


class Range(NamedTuple):
    """The values that an argument may have.

    Args:
        low, high: smallest and largest number, also of the numbers in a list.
        items: largest number of items of a list.
    """

    low: float
    high: float
    items: int = 16


_UNLIMITED = Range(float("-inf"), float("inf"))


def check_arguments(function: Callable[..., Any], arguments: Mapping[str, Any], ranges: Mapping[str, Range]) -> None:
    """Check types and ranges of the arguments of a function.

    A number is no bool, and only a whole number fits ``int``. Arguments that the function does not have are ignored.

    Args:
        function: function with annotations, for example a constructor.
        arguments: arguments by name; a part of them is enough.
        ranges: ranges by name. Numbers without a range must be finite.

    Raises:
        UserError: an argument has another type or is out of its range.
    """
    for name, parameter in inspect.signature(function).parameters.items():
        limits = ranges.get(name, _UNLIMITED)
        if name in arguments and not _fits(arguments[name], parameter.annotation, limits):
            expected = _describe(parameter.annotation, limits)
            raise UserError(f"{name} is {short_form(arguments[name])}: expected {expected}")


def short_form(value: object) -> str:
    """Return a value as Python writes it, in one line of limited length."""
    if isinstance(value, int) and value.bit_length() > 256:
        return "a number of more than 70 digits"
    return printable(reprlib.repr(value))


def as_list(value: Any) -> Any:
    """Return a tuple as a list, and other values as they are, to compare arguments with stored settings."""
    return list(value) if isinstance(value, tuple) else value


def _fits(value: Any, annotation: Any, limits: Range) -> bool:
    value = value.tolist() if hasattr(value, "tolist") else value  # numbers and arrays of numpy, tensors
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, one, limits) for one in inner)
    if annotation in (None, types.NoneType):
        return value is None
    if annotation in (bool, str):
        return isinstance(value, annotation)
    if annotation in (int, float):
        number = isinstance(value, int if annotation is int else int | float) and not isinstance(value, bool)
        return number and limits.low <= value <= limits.high and abs(value) != float("inf")
    if origin in (list, tuple, Sequence):
        items = isinstance(value, Sequence) and not isinstance(value, str | bytes)
        return items and len(value) <= limits.items and all(_fits(item, inner[0], limits) for item in value)
    return True


def _describe(annotation: Any, limits: Range) -> str:
    """Return in words what fits an annotation."""
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_describe(one, limits) for one in inner)
    if origin in (list, tuple, Sequence):
        return f"a list of up to {limits.items:,} items, each {_describe(inner[0], limits)}"
    if annotation in (int, float):
        kind = "a whole number" if annotation is int else "a number"
        return kind if limits[:2] == _UNLIMITED[:2] else f"{kind} from {_number(limits.low)} to {_number(limits.high)}"
    return {bool: "true or false", str: "text"}.get(annotation, "null")


def _number(limit: float) -> str:
    return f"{limit:,}" if isinstance(limit, int) else f"{limit:g}"
