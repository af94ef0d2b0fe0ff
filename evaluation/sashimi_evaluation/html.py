"""HTML pages from the jinja2 templates of a package, and audio that browsers play."""

from importlib.resources import files

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from sashimi_diffusion.data.audio import resample

_LOWEST_RATE, _HIGHEST_RATE = 8000, 192000  # in Hz; every current browser plays these and most rates between them
_USUAL_RATE = 48000


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


def playable(waveform: np.ndarray, sample_rate: int) -> tuple[np.ndarray, int]:
    """Return a waveform and its rate in Hz, resampled if browsers do not play its rate.

    Args:
        waveform: finite, shape (length,).
        sample_rate: in Hz. Rates below 8 kHz become 8 kHz, rates above 192 kHz become 48 kHz.
    """
    if _LOWEST_RATE <= sample_rate <= _HIGHEST_RATE:
        return waveform, sample_rate
    rate = _LOWEST_RATE if sample_rate < _LOWEST_RATE else _USUAL_RATE
    return resample(waveform.astype(np.float32), sample_rate, rate), rate
