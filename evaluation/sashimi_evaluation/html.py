"""HTML pages from the jinja2 templates of a package."""

from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def template_environment(package: str) -> Environment:
    """Return an environment that loads templates from the folder ``templates`` of ``package``.

    Values are escaped unless they are ``Markup``; an undefined name raises an error.
    """
    environment = Environment(
        loader=PackageLoader(package),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    return environment


def package_file(package: str, name: str) -> Markup:
    """Return the content of a style sheet or script of ``package`` as markup, which templates insert unchanged."""
    return Markup(files(package).joinpath(name).read_text(encoding="utf-8"))


def encode_page(page: str) -> bytes:
    """Return a page as UTF-8. Undecodable bytes of file names, which Python keeps as surrogates, become "?"."""
    return page.encode("utf-8", "replace")
