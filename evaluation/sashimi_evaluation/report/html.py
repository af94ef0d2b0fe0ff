"""HTML by nested function calls, in which text can not be taken for markup."""

from html import escape
from importlib.resources import files

_VOID = frozenset({"img", "input", "meta"})


class Markup(str):
    """A string that is HTML already and is not escaped again."""

    __slots__ = ()


def element(tag: str, *children: str, **attributes: object) -> Markup:
    """``<tag attributes>children</tag>``.

    Args:
        tag: name of the element.
        children: ``Markup`` goes in as it is, any other string is escaped.
        attributes: an underscore at the end of a name falls away (``class_``), others become hyphens; True makes an
            attribute without a value, None and False none at all.
    """
    written = "".join(_attribute(name, value) for name, value in attributes.items())
    if tag in _VOID:
        return Markup(f"<{tag}{written}>")
    return Markup(f"<{tag}{written}>{join(*children)}</{tag}>")


def join(*children: str) -> Markup:
    """Pieces one after the other; those that are not ``Markup`` are escaped."""
    return Markup("".join(child if isinstance(child, Markup) else text(child) for child in children))


def text(value: str) -> Markup:
    """Plain text as HTML. File names may hold bytes that are no text: these become question marks."""
    return Markup(escape(value.encode("utf-8", "replace").decode()))


def packaged(package: str, name: str) -> Markup:
    """The content of a style sheet or script that comes with ``package``."""
    return Markup(files(package).joinpath(name).read_text(encoding="utf-8"))


def _attribute(name: str, value: object) -> str:
    name = name.rstrip("_").replace("_", "-")
    if value is None or value is False:
        return ""
    return f" {name}" if value is True else f' {name}="{text(str(value))}"'
