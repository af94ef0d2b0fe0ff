"""Base class of all settings: keys, types and ranges are checked, and errors name the key in full."""

import collections.abc
import types
import typing
from collections.abc import Iterable, Sequence
from typing import Any, Literal, Union

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.suggestions import nearest_name


class Settings(BaseModel):
    """A group of settings. An unknown key is an error. Settings cannot be changed after they are checked.

    An int is accepted where a float is expected; no other type is converted.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _accept_empty_group(cls, value: Any) -> Any:
        return {} if value is None else value  # YAML reads a key without a value as null


def unknown_key(key: str, valid: Iterable[str], prefix: str = "") -> UserError:
    """Return the error for a key that does not exist; it suggests the most similar valid key.

    Args:
        key: the unknown key.
        valid: the keys that exist in its group.
        prefix: path of the group in the whole config, for example "model.".
    """
    valid = sorted(valid)
    near = nearest_name(str(key), valid)
    advice = f"did you mean {prefix}{near}?" if near else f"the valid keys are {', '.join(valid)}"
    return UserError(f"unknown config key {prefix}{key}: {advice}")


def first_problem(error: ValidationError, kind: type[BaseModel], tree: Any, prefix: str = "") -> UserError:
    """Return the first problem that pydantic found, as a UserError with a message of one line.

    Args:
        error: the exception that ``kind.model_validate(tree)`` raised.
        kind: the class of the settings.
        tree: the nested dictionary that was checked.
        prefix: path of ``tree`` in the whole config, for example "model.".
    """
    problem = error.errors()[0]
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, UserError):
        return cause
    location = problem["loc"]
    if location[-1:] == ("[key]",):
        return UserError(f"the keys of {prefix}{_dotted(location[:-2])} must be text, not {location[-2]!r}")
    if problem["type"] == "missing":
        return UserError(f"the config key {prefix}{_dotted(location)} is missing")

    # Follow the location of the problem through the nested groups of settings down to one field. The rest of the
    # location is inside the value of that field.
    annotation, value, field, path = kind, tree, FieldInfo(), []  # type: Any, Any, FieldInfo, list[str | int]
    for key in location:
        if _is_group(annotation):
            if key not in annotation.model_fields:
                return unknown_key(str(key), annotation.model_fields, prefix + "".join(f"{part}." for part in path))
            field = annotation.model_fields[str(key)]
            annotation = field.annotation
        elif typing.get_origin(annotation) is dict and _is_group(typing.get_args(annotation)[1]):
            annotation = typing.get_args(annotation)[1]
        else:
            break
        value = value[key]
        path.append(key)

    name = f"{prefix}{_dotted(path)}" if path else prefix.rstrip(".") or "the config"
    if problem["type"] in ("greater_than", "greater_than_equal", "less_than", "less_than_equal"):
        return UserError(f"{name} is {value!r}: it must be {_range(field)}")
    if cause is not None:
        return UserError(f"{name} is {value!r}: {cause}")
    return UserError(f"{name} must be {_describe(annotation)}, not {value!r}")


def _dotted(path: Sequence[str | int]) -> str:
    return ".".join(map(str, path))


def _is_group(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _range(field: FieldInfo) -> str:
    """Return the limits of a field in words, for example "at least 0 and below 1"."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    limits = [(word, getattr(limit, key, None)) for limit in field.metadata for key, word in words.items()]
    return " and ".join(f"{word} {limit:g}" for word, limit in limits if limit is not None)


_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", None: "null"}


def _describe(annotation: Any) -> str:
    """Return a type in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in (None, type(None)):
        return "null"
    if origin in (Union, types.UnionType):
        null_first = sorted(arguments, key=lambda argument: argument is not type(None))
        return " or ".join(_describe(argument) for argument in null_first)
    if origin is Literal:
        return " or ".join(repr(choice) for choice in arguments)
    if origin in (list, tuple, collections.abc.Sequence):
        return "a list" + (f" in which each item is {_describe(arguments[0])}" if arguments else "")
    if origin is dict and not _is_group(arguments[1]):
        return f"a group of keys in which each value is {_describe(arguments[1])}"
    if origin is dict or _is_group(annotation):
        return "a group of keys"
    return _NAMES.get(annotation, str(annotation))
