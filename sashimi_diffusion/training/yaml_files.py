"""Read and write YAML files of settings, and apply ``key.sub=value`` overrides to their values."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from sashimi_diffusion.errors import UserError


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, except that ``1e-4`` is a number and a duplicate key is an error."""

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
    """Return the value of a YAML text.

    Args:
        text: the YAML text.
        source: name of the text for error messages, for instance its file.

    Raises:
        UserError: ``text`` is not valid YAML or has a duplicate key.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from error


def read_yaml_file(path: str | Path) -> dict:
    """Return the mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        UserError: there is no such file, or it is not text, not YAML or not a mapping.
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
    """Return ``value`` as YAML text, which :func:`read_yaml` reads back unchanged."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=120)


def apply_overrides(tree: dict, overrides: Iterable[str]) -> dict:
    """Return a copy of ``tree`` with each ``key.sub=value`` of ``overrides`` set; values are read as YAML.

    Raises:
        UserError: an override has no "=", or it goes through a key whose value is not a mapping.
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
