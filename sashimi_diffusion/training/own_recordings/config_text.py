"""Settings with the reasons for their values, and their text: a YAML file with comments."""

import math
from typing import Any, NamedTuple

from sashimi_diffusion.terminal import printable
from sashimi_diffusion.training.yaml_files import write_yaml

_WIDTH = 120


class Setting(NamedTuple):
    """A value of a config, and why it has this value; an empty reason gives no comment."""

    value: Any
    why: str = ""


Groups = dict[str, Any]
"""Name -> :class:`Setting`, or a group of them."""


def plain(groups: Groups) -> dict[str, Any]:
    """Return the values without their reasons, a tree for ``from_tree``."""
    return {key: value.value if isinstance(value, Setting) else plain(value) for key, value in groups.items()}


def config_text(groups: Groups, header: list[str]) -> str:
    """Return the YAML text: the header as comments, then each setting with its reason behind it.

    Args:
        groups: the settings.
        header: lines at the beginning, without "#".
    """
    lines = [f"# {line}".rstrip() for line in header]
    for key, value in groups.items():
        if isinstance(value, Setting):
            lines += _lines(key, value, "")
        else:
            lines += ["", f"{key}:"]
            lines += [line for name, setting in value.items() for line in _lines(name, setting, "  ")]
    return "\n".join(lines) + "\n"


def _lines(key: str, setting: Setting, indent: str) -> list[str]:
    """Return a setting as one line, or with its reason on the line before if they are too long together."""
    value = setting.value
    # A list on one line; texts as PyYAML quotes them.
    text = f"[{', '.join(_scalar(item) for item in value)}]" if isinstance(value, list) else _scalar(value)
    line, comment = f"{indent}{key}: {text}", f"# {printable(setting.why)}"
    if not setting.why:
        return [line]
    if len(line) + 2 + len(comment) <= _WIDTH:
        return [f"{line}  {comment}"]
    return [f"{indent}{comment}", line]


def _scalar(value: object) -> str:
    """Return a text, a number, true, false or null as YAML on one line."""
    return write_yaml({"key": value}, width=math.inf).removeprefix("key: ").rstrip("\n")
