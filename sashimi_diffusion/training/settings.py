"""Base class of all settings: keys, types and ranges are checked, and errors name the key in full."""

import collections.abc
import re
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, Union

from annotated_types import Ge, Gt, Le, Len
from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError, model_validator
from pydantic.fields import FieldInfo

from sashimi_diffusion.arguments import short_form
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.suggestions import nearest_name
from sashimi_diffusion.training.yaml_files import Override, read_yaml, short_key

MAX_TEXT = 4096
"""The largest number of characters of a text. The paths of Linux have no more."""
_QUOTED = re.compile(r"""'(?:[^']|'')*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)


def _usable(text: str) -> str:
    if not text:
        raise ValueError("it must not be empty")
    if "\0" in text:
        raise ValueError("it must not contain a null character")
    if len(text) > MAX_TEXT:
        raise ValueError(f"it must have at most {MAX_TEXT:,} characters")
    return text


Text = Annotated[str, AfterValidator(_usable)]
"""Text that is not empty, such as a path."""
PositiveFinite = Annotated[float, Gt(0), Le(1e38)]
"""A number above 0 that float32, in which most computations are done, can represent."""
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]
"""A seed of random numbers. NumPy accepts 32 bits."""
Values = Annotated[list[str | int], Len(1)]
"""Values of a field of file names; at least one."""


class Settings(BaseModel):
    """A group of settings. An unknown key is an error. Settings cannot be changed after they are checked.

    An int is accepted where a float is expected; no other type is converted. Every number must be finite.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @classmethod
    def types_of(cls, group: Mapping[str, Any]) -> dict[str, Any]:
        """Return the type of every key that a group with these values may have."""
        return {key: field.annotation for key, field in cls.model_fields.items()}

    @model_validator(mode="before")
    @classmethod
    def _accept_empty_group(cls, value: Any) -> Any:
        return {} if value is None else value  # YAML reads a key without a value as null


def read_overrides(annotation: Any, value: Any, name: str = "") -> Any:
    """Return a value in which the type of its field decides how each :class:`Override` is read.

    Where the field is text, the override is the value; "null" is no value where the field may have none. Text within
    quotes is read without them, so ``'null'`` is text. All other overrides are read as YAML.

    Args:
        annotation: type of the value.
        value: the value, or a nested dictionary.
        name: its key in full.

    Raises:
        UserError: an override is not valid YAML, or is empty where the field may have no value.
    """
    choices = _alternatives(annotation)
    if isinstance(value, Override):
        return _read_text(value, choices, name) if _is_text(choices) else read_yaml(value, short_key(name))
    if not isinstance(value, dict):
        return value
    for choice in choices:
        if _is_group(choice):
            of_key = choice.types_of(value)
            return {key: read_overrides(of_key.get(key, str), item, _join(name, key)) for key, item in value.items()}
        if typing.get_origin(choice) is dict:
            inner = typing.get_args(choice)[1]
            return {key: read_overrides(inner, item, _join(name, key)) for key, item in value.items()}
    return {key: read_overrides(str, item, _join(name, key)) for key, item in value.items()}


def _read_text(text: Override, choices: Sequence[Any], name: str) -> str | None:
    if type(None) in choices:
        if not text:
            raise UserError(f"{short_key(name)} has no value: write {short_key(name)}=null if there is none")
        if text == "null":
            return None
    if not _QUOTED.fullmatch(text):
        return str(text)
    if "\\" in text and text[0] == '"':
        return read_yaml(text, short_key(name))
    return text[1:-1].replace("''", "'") if text[0] == "'" else text[1:-1]


def _is_text(choices: Sequence[Any]) -> bool:
    """Return whether all types but null are text."""

    def is_text(choice: Any) -> bool:
        if typing.get_origin(choice) is Literal:
            return all(isinstance(value, str) for value in typing.get_args(choice))
        return choice in (str, type(None))

    return all(map(is_text, choices))


def _alternatives(annotation: Any) -> list[Any]:
    """Return the types of a union, or the only type, without their constraints."""
    if typing.get_origin(annotation) is Annotated:
        return _alternatives(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return [choice for one in typing.get_args(annotation) for choice in _alternatives(one)]
    return [annotation]


def unknown_key(key: object, valid: Iterable[str], prefix: str = "") -> UserError:
    """Return the error for a key that does not exist; it suggests the most similar valid key.

    Args:
        key: the unknown key.
        valid: the keys that exist in its group.
        prefix: path of the group in the whole config, for example "model.".
    """
    valid = sorted(valid)
    near = nearest_name(str(key), valid)
    advice = f"did you mean {prefix}{near}?" if near else f"the valid keys are {', '.join(valid)}"
    return UserError(f"unknown config key {prefix}{short_key(key)}: {advice}")


def first_problem(error: ValidationError, kind: type[BaseModel], tree: Any, prefix: str = "") -> UserError:
    """Return the first problem that pydantic found, as a UserError with a message of one line.

    Args:
        error: the exception that ``kind.model_validate(tree)`` raised.
        kind: the class of the settings.
        tree: the nested dictionary that was checked.
        prefix: path of ``tree`` in the whole config, for example "model.".
    """
    problem = error.errors(include_url=False)[0]
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, UserError):
        return cause
    location, type_ = problem["loc"], problem["type"]
    if location[-1:] == ("[key]",):
        return UserError(f"the keys of {prefix}{_dotted(location[:-2])} must be text, not {short_key(location[-2])}")
    if type_ == "invalid_key":
        group = f"{prefix}{_dotted(location[:-1])}".rstrip(".") or "the config"
        return UserError(f"the keys of {group} must be text, not {short_key(location[-1])}")
    if type_ == "missing":
        return UserError(f"the config key {prefix}{_dotted(location)} is missing")

    annotation, value, field, path = _followed(location, kind, tree)
    if _is_group(annotation) and len(path) < len(location):
        group = prefix + "".join(f"{short_key(key)}." for key in path)
        return unknown_key(location[len(path)], annotation.model_fields, group)
    if type_ == "string_unicode" and _is_group(annotation):  # pydantic does not name the key that is not UTF-8
        unknown = next(key for key in value if not str(key).isprintable())
        return unknown_key(unknown, annotation.model_fields, f"{prefix}{_dotted(path)}." if path else prefix)
    name = f"{prefix}{_dotted(path)}" if path else prefix.rstrip(".") or "the config"
    number = problem["input"]
    too_large = type_ == "float_type" and isinstance(number, int) and not isinstance(number, bool)
    if too_large or type_ in ("greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number"):
        return UserError(f"{name} is {short_form(value)}: it must be {_range(field) or 'finite'}")
    if type_ == "too_short":
        return UserError(f"{prefix}{_dotted(location)} is {short_form(number)}: it must have at least one value")
    if cause is not None:
        return UserError(f"{name} is {short_form(value)}: {cause}")
    quotes = _about_quotes(number) if type_ == "string_type" else ""
    return UserError(f"{name} must be {_describe(annotation)}, not {short_form(value)}{quotes}")


def _about_quotes(value: Any) -> str:
    """Return what to do if YAML has read text as a number or as true or false."""
    if isinstance(value, bool):
        return "; YAML reads no, off, yes and on as false or true: put text in quotes"
    return "; put text in quotes" if isinstance(value, int | float) else ""


def _followed(
    location: Sequence[str | int], kind: type[BaseModel], tree: Any
) -> tuple[Any, Any, FieldInfo, list[str | int]]:
    """Follow the location of a problem through nested groups of settings down to one field, or to an unknown key.

    The rest of the location is inside the value of that field.

    Returns:
        type and value at the end of the path, the field there, and the path, a part of ``location``.
    """
    annotation, value, field, path = kind, tree, FieldInfo(), []  # type: Any, Any, FieldInfo, list[str | int]
    for key in location:
        if _is_group(annotation) and key in annotation.model_fields:
            field = annotation.model_fields[str(key)]
            annotation = field.annotation
        elif typing.get_origin(annotation) is dict and _is_group(typing.get_args(annotation)[1]):
            annotation = typing.get_args(annotation)[1]
        else:
            break
        value = value[key]
        path.append(key)
    return annotation, value, field, path


def _join(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)


def _dotted(path: Sequence[str | int]) -> str:
    return ".".join(map(short_key, path))


def _is_group(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)


def _range(field: FieldInfo) -> str:
    """Return the limits of a field in words, for example "at least 0 and below 1"."""
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    nested = [limit for choice in typing.get_args(field.annotation) for limit in getattr(choice, "__metadata__", ())]
    limits = [(word, getattr(limit, key, None)) for limit in [*field.metadata, *nested] for key, word in words.items()]
    return " and ".join(f"{word} {_written(limit)}" for word, limit in limits if limit is not None)


def _written(limit: float) -> str:
    return f"{limit:,}" if isinstance(limit, int) else f"{limit:g}"


_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", None: "null"}


def _describe(annotation: Any) -> str:
    """Return a type in words."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return _describe(arguments[0])
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
