"""Plain dictionaries, as YAML gives them, into nested dataclasses: every key and every type is checked.

A wrong key is an error that names the nearest valid one, a wrong type an error that says what is wanted: a setting that
is silently ignored costs its author days.
"""

import collections.abc
import dataclasses
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.suggestions import nearest_name

T = TypeVar("T")


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, except that ``1e-4`` is a number and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise UserError(f"the key {key!r} is given twice (line {node.start_mark.line + 1} on): keep one")
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_yaml(text: str, source: str) -> Any:
    """The value that ``text`` holds.

    Raises:
        UserError: not YAML; ``source`` says where the text came from.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error


def read_yaml_file(path: str | Path) -> dict:
    """The mapping a YAML file holds; an empty file is an empty mapping.

    Raises:
        UserError: no such file, not text, not YAML, or not a mapping.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the config file {path}: {error}") from error
    value = read_yaml(text, str(path))
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise UserError(f"{path} must hold `key: value` lines, not a {type(value).__name__}")
    return value


def write_yaml(value: Any) -> str:
    """``value`` as YAML text that :func:`read_yaml` reads back as it was."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)


def apply_overrides(tree: dict, overrides: Iterable[str]) -> dict:
    """A copy of ``tree`` with each ``key.sub=value`` of ``overrides`` set, the values read as YAML.

    Raises:
        UserError: an override without "=", or one that goes through a key that holds no mapping.
    """
    tree = _copy(tree)
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name:
            raise UserError(f"{override!r} is not an override: write key.sub=value, for instance training.steps=1000")
        *parents, last = name.split(".")
        node = tree
        for parent in parents:
            if node.get(parent) is None:
                node[parent] = {}
            node = node[parent]
            if not isinstance(node, dict):
                raise UserError(f"{name}: {parent} is a value, not a group of keys")
        node[last] = read_yaml(text, name)
    return tree


def _copy(tree: Any) -> Any:
    return {key: _copy(value) for key, value in tree.items()} if isinstance(tree, dict) else tree


def unknown_key(key: str, valid: Iterable[str], prefix: str = "") -> UserError:
    """The error for a key that does not exist: names the nearest one that does."""
    valid = sorted(valid)
    near = nearest_name(str(key), valid)
    advice = f"did you mean {prefix}{near}?" if near else f"the keys here are {', '.join(valid)}"
    return UserError(f"unknown config key {prefix}{key}: {advice}")


def build(kind: type[T], tree: Any, prefix: str = "") -> T:
    """An instance of the dataclass ``kind`` from a nested mapping; keys left out keep their defaults.

    Raises:
        UserError: unknown key, or a value of the wrong type; the text names the key with its full path.
    """
    tree = {} if tree is None else tree
    if not isinstance(tree, Mapping):
        raise UserError(f"{prefix.rstrip('.') or 'the config'} must be a group of keys, not {tree!r}")
    types_of = typing.get_type_hints(kind)
    hints = {entry.name: types_of[entry.name] for entry in dataclasses.fields(kind)}
    for key in tree:
        if key not in hints:
            raise unknown_key(key, hints, prefix)
    return kind(**{key: convert(value, hints[key], prefix + key) for key, value in tree.items()})


def convert(value: Any, annotation: Any, name: str) -> Any:
    """``value`` as ``annotation`` wants it (an int where a float is wanted becomes one).

    Raises:
        UserError: wrong type; ``name`` is the key's full path.
    """
    if dataclasses.is_dataclass(annotation):
        if hasattr(annotation, "from_tree"):
            return annotation.from_tree(value, name + ".")
        return build(annotation, value, name + ".")
    if typing.get_origin(annotation) is dict and isinstance(value, dict):
        _, kind = typing.get_args(annotation)
        if dataclasses.is_dataclass(kind):  # groups of keys by names of the user's own
            return {convert(k, str, f"a name in {name}"): convert(v, kind, f"{name}.{k}") for k, v in value.items()}
    try:
        return _match(value, annotation)
    except TypeError:
        raise UserError(f"{name} must be {_describe(annotation)}, not {value!r}") from None


def check_arguments(function: Callable, arguments: Mapping[str, Any], prefix: str, taken: Iterable[str] = ()) -> None:
    """Check ``arguments`` against a constructor's signature; those ``taken`` are not for the user to give.

    Raises:
        UserError: unknown argument or wrong type.
    """
    parameters = {k: v for k, v in inspect.signature(function).parameters.items() if k not in {"self", *taken}}
    for key, value in arguments.items():
        if key not in parameters:
            raise unknown_key(key, parameters, prefix)
        if parameters[key].annotation is not inspect.Parameter.empty:
            convert(value, parameters[key].annotation, prefix + key)


def _match(value: Any, annotation: Any) -> Any:
    """``value`` converted, or TypeError."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation is Any:
        return value
    if origin in (Union, types.UnionType):
        return _first_match(value, arguments)
    if origin is Literal:
        return _require(value, any(value == choice and type(value) is type(choice) for choice in arguments))
    if origin in (list, tuple, collections.abc.Sequence):
        items = list(_require(value, isinstance(value, (list, tuple))))
        return [_match(item, arguments[0]) for item in items] if arguments else items
    if origin is dict:
        _require(value, isinstance(value, dict))
        return {_match(key, arguments[0]): _match(item, arguments[1]) for key, item in value.items()}
    if annotation is float:
        return float(_require(value, isinstance(value, (int, float)) and not isinstance(value, bool)))
    if annotation is int:
        return _require(value, isinstance(value, int) and not isinstance(value, bool))
    if annotation in (None, type(None)):
        return _require(value, value is None)
    return _require(value, isinstance(value, annotation))


def _first_match(value: Any, annotations: tuple) -> Any:
    for annotation in annotations:
        try:
            return _match(value, annotation)
        except TypeError:
            continue
    raise TypeError


def _require(value: Any, condition: bool) -> Any:
    if not condition:
        raise TypeError
    return value


_NAMES = {int: "a whole number", float: "a number", str: "text", bool: "true or false", None: "null"}


def _describe(annotation: Any) -> str:
    """The type in words for an error text."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if annotation in (None, type(None)):
        return "null"
    if origin in (Union, types.UnionType):
        return " or ".join(_describe(argument) for argument in arguments)
    if origin is Literal:
        return " or ".join(repr(choice) for choice in arguments)
    if origin in (list, tuple, collections.abc.Sequence):
        return "a list" + (f" whose items are {_describe(arguments[0])}" if arguments else "")
    if origin is dict:
        return "a group of keys"
    return _NAMES.get(annotation, str(annotation))
