"""JSON as the standard defines it, which has no NaN and no infinity."""

import json
import math
from collections.abc import Callable
from typing import Any


def json_text(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON text, with null in place of numbers that are not finite."""
    return json.dumps(strict(value), indent=indent, allow_nan=False)


def strict(value: Any, replace: Callable[[float], Any] = lambda number: None) -> Any:
    """Return a copy of a nested value of dictionaries and lists, without numbers that are not finite.

    Args:
        value: the value; tuples and sets become lists.
        replace: function of such a number; its result takes the place of the number.
    """
    if isinstance(value, dict):
        return {key: strict(part, replace) for key, part in value.items()}
    if isinstance(value, list | tuple | set):
        return [strict(part, replace) for part in value]
    return replace(value) if isinstance(value, float) and not math.isfinite(value) else value
