"""Read and write YAML files of settings, and set ``key.sub=value`` overrides in their values."""

import contextlib
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from sashimi_diffusion.arguments import short_form
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.paths import read_text
from sashimi_diffusion.terminal import printable

MAX_BYTES = 1 << 20
"""The largest size of a config file. Those of this repository have 5 kB."""
MAX_VALUES = 20_000
"""The largest number of values and groups in a YAML text. An alias counts as many as the value that it repeats."""
MAX_DEPTH = 16
"""The largest number of lists and groups within each other. Configs have four."""

_PREFIX = "tag:yaml.org,2002:"
_FLOAT = re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")


class Override(str):
    """The text of an override. The type of its field decides whether it is the value, or YAML that has to be read."""


class _Loader(yaml.SafeLoader):
    """YAML 1.1 as PyYAML reads it, with these differences.

    ``1e-4`` is a number, and dates are text. All values are text, numbers, true, false, null, lists or groups. A
    duplicate key is an error.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012  # as in PyYAML
        first: [(tag, pattern) for tag, pattern in resolvers if tag != f"{_PREFIX}timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._count = self._depth = 0

    def read(self) -> Any:
        """Return the value of the text."""
        node = self.get_single_node()
        self._count = 0
        return None if node is None else self._value(node)

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Read the next node of the text."""
        with self._limited():
            return super().compose_node(parent, index)

    @contextlib.contextmanager
    def _limited(self) -> Iterator[None]:
        self._count, self._depth = self._count + 1, self._depth + 1
        if self._count > MAX_VALUES:
            raise UserError(f"more than {MAX_VALUES:,} values, those repeated by aliases included")
        if self._depth > MAX_DEPTH:
            raise UserError(f"more than {MAX_DEPTH} lists and groups within each other")
        yield
        self._depth -= 1

    def _value(self, node: yaml.Node) -> Any:
        # An alias is the same node at several places. Nodes are counted again while they are expanded, so that nested
        # aliases, and those of themselves, end here.
        with self._limited():
            return self._read(node)

    def _read(self, node: yaml.Node) -> Any:
        kind = node.tag.removeprefix(_PREFIX)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [self._value(item) for item in node.value]
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self._mapping(node)
        if isinstance(node, yaml.ScalarNode) and kind in ("str", "int", "float", "bool", "null"):
            try:
                return self.construct_object(node)
            except (ValueError, KeyError) as error:  # from a tag such as !!int, or from a number of 5,000 digits
                raise UserError(f"{short_form(node.value)} is no value of the type {kind}{_place(node)}") from error
        raise UserError(f"values of the type {printable(kind)[:40]} are not supported{_place(node)}")

    def _mapping(self, node: yaml.MappingNode) -> dict:
        mapping = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise UserError(f"a key is a list or a group{_place(key_node)}: expected text")
            key = self._value(key_node)
            if key in mapping:
                raise UserError(f"the key {short_form(key)} is given twice{_place(key_node)}: keep one")
            mapping[key] = self._value(value_node)
        return mapping


class _Dumper(yaml.SafeDumper):
    """PyYAML's writer, which quotes text that :class:`_Loader` would read as a number, such as ``1e5``.

    Text with control characters is written with escapes, because PyYAML reads some of them as line breaks.
    """

    def represent_str(self, data: str) -> yaml.ScalarNode:
        """Return the node of a text."""
        return self.represent_scalar(f"{_PREFIX}str", data, style=None if data.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_str)


for _class in (_Loader, _Dumper):
    _class.add_implicit_resolver(f"{_PREFIX}float", _FLOAT, list("-+.0123456789"))


def _place(node: yaml.Node) -> str:
    return f" (line {node.start_mark.line + 1})"


def read_yaml(text: str, source: str) -> Any:
    """Return the value of a YAML text: nested dictionaries and lists of text, numbers, true, false and null.

    Args:
        text: the YAML text.
        source: name of the text for error messages, for instance its file, escaped.

    Raises:
        UserError: ``text`` is not valid YAML, has a duplicate key or a value of another type, such as ``!!binary``, or
            has too many values.
    """
    try:
        return _Loader(text).read()
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    except yaml.MarkedYAMLError as error:
        line = "" if error.problem_mark is None else f" (line {error.problem_mark.line + 1})"
        raise UserError(f"{source} is not valid YAML{line}: {printable(error.problem)}") from error
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not valid YAML: {printable(' '.join(str(error).split()))}") from error
    except (ValueError, OverflowError) as error:
        raise UserError(
            f"{source} is not valid YAML: it has an escape such as \\UFFFFFFFF, which is no character"
        ) from error


def read_yaml_file(path: str | Path) -> dict:
    """Return the mapping in a YAML file; an empty file is an empty mapping.

    Raises:
        UserError: there is no such file, or it is no regular file, too large, not text, not YAML or not a mapping.
    """
    value = read_yaml(read_text(path, "a config, which is a YAML file", MAX_BYTES), printable(path))
    if value is None:
        return {}
    if not isinstance(value, dict):
        kind = "a list" if isinstance(value, list) else short_form(value)
        raise UserError(f"{printable(path)} must hold `key: value` lines, not {kind}")
    return value


def write_yaml(value: Any, width: float = 120) -> str:
    """Return ``value`` as YAML text, which :func:`read_yaml` reads back unchanged.

    Args:
        value: nested dictionaries and lists of text, numbers, true, false and null.
        width: characters of a line after which long text goes on in the next one.
    """
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=width)


def apply_overrides(tree: dict, overrides: Iterable[str]) -> dict:
    """Return a copy of ``tree`` with each ``key.sub=value`` of ``overrides`` set, as an :class:`Override`.

    Raises:
        UserError: an override has no "=", has an incomplete key, or names a key inside of a value that is no mapping.
    """
    tree = _copy(tree)
    for override in overrides:
        name, equals, text = override.partition("=")
        *parents, last = parts = name.split(".")
        if not equals or not all(parts) or len(parts) > MAX_DEPTH:
            raise UserError(
                f"{short_form(override)} is not an override: write key.sub=value, for instance training.steps=1000"
            )
        node = tree
        for parent in parents:
            group = node.get(parent)
            if isinstance(group, Override):
                group = read_yaml(group, short_key(parent))  # an override of the whole group came before this one
            node[parent] = {} if group is None else group
            node = node[parent]
            if not isinstance(node, dict):
                raise UserError(f"{short_key(name)}: {short_key(parent)} is a value, not a group of keys")
        node[last] = Override(text)
    return tree


def short_key(name: object) -> str:
    """Return the name of a key for a message: escaped, and cut if it is long."""
    text = printable(name)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _copy(tree: Any) -> Any:
    return {key: _copy(value) for key, value in tree.items()} if isinstance(tree, dict) else tree
