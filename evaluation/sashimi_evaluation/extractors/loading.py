"""Find and load feature extractors: those known by name, and functions of the user."""

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from sashimi_diffusion.data.audio import RATES
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.paths import entries, expanded, is_file, is_folder, status
from sashimi_diffusion.suggestions import did_you_mean
from sashimi_diffusion.terminal import one_line, printable
from sashimi_evaluation.extractors.embedding import load_embedding
from sashimi_evaluation.extractors.interface import FeatureExtractor
from sashimi_evaluation.extractors.panns import load_panns
from sashimi_evaluation.extractors.transformers_models import load_clap, load_encodec
from sashimi_evaluation.extractors.vggish import load_vggish

_OWN = {"__main__", "sashimi_diffusion", "sashimi_evaluation", "sashimi_kernels"}
_EXPECTED = "see sashimi_evaluation.FeatureExtractor"
EMBEDDING = "embedding"
"""Name of the extractor that is part of this package."""
_FROM_FILE = {"vggish": load_vggish, "panns": load_panns}
_FROM_FOLDER = {"clap": load_clap, "encodec": load_encodec}
_NAMES = (EMBEDDING, *_FROM_FILE, *_FROM_FOLDER)
NAMED = "embedding, vggish=FILE, panns=FILE, clap=FOLDER, encodec=FOLDER"
"""The extractors that are known by name, for help texts."""
_LONGEST = 60.0


def load_extractor(location: str, device: str | torch.device = "cpu") -> FeatureExtractor:
    """Load a feature extractor: one that is known by name, or what a function or class of the user creates.

    Args:
        location: "embedding", the bundled speech embedding; "vggish=FILE", "panns=FILE", "clap=FOLDER" or
            "encodec=FOLDER" with weights on disk, where nothing is downloaded; or "package.module:function", see
            :func:`import_extractor`.
        device: device of the networks that are known by name.

    Raises:
        UserError: there is no such extractor, its weights cannot be used, or its package is not installed.
    """
    flag = f"--features {printable(location)}"
    name, separator, path = location.partition("=")
    if name not in _NAMES:
        if ":" in location and not separator:
            return import_extractor(location)
        raise UserError(
            f"{flag}: expected package.module:function, a function that returns the extractor, or one of {NAMED}"
            f"{did_you_mean(name, _NAMES, '; ')}"
        )
    if name == EMBEDDING:
        if separator:
            raise UserError(f"{flag}: {EMBEDDING} is part of the package and takes no path: expected --features {name}")
        return load_embedding(device)
    kind = "FILE" if name in _FROM_FILE else "FOLDER"
    if not path:
        raise UserError(f"{flag}: the weights are missing: expected --features {name}={kind}; nothing is downloaded")
    weights = expanded(path)
    if status(weights) is None:
        raise UserError(f"{flag}: {printable(path)} does not exist: expected the weights of {name}")
    if not (is_file(weights) if kind == "FILE" else is_folder(weights)):
        raise UserError(f"{flag}: {printable(path)} is no {kind.lower()}: expected --features {name}={kind}")
    return (_FROM_FILE | _FROM_FOLDER)[name](weights, device)


def import_extractor(location: str) -> FeatureExtractor:
    """Import a function or a class, call it and return the feature extractor that it creates.

    Only what can be an extractor is called: a function or a class, from a module of the user, that this module or its
    package defines, and that takes no arguments. A class must have the method ``features``. Modules of the standard
    library are not even imported.

    Args:
        location: ``package.module:function``; the module must be importable.

    Raises:
        UserError: there is no such module or function, it may not be called or fails, or it does not return a
            :class:`FeatureExtractor`.
    """
    flag = f"--features {printable(location)}"
    module_name, _, name = location.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), name]):
        raise UserError(f"{flag}: expected package.module:function, a function that returns the extractor")
    if _top(module_name) in {*sys.stdlib_module_names, *_OWN}:
        raise UserError(f"{flag}: {_top(module_name)} is no module with feature extractors: give a module of your own")
    module = _attempt(lambda: importlib.import_module(module_name), f"{flag}: cannot import {module_name}")
    create: Any = _attempt(lambda: getattr(module, name, None), f"{flag}: cannot import {name} of {module_name}")
    _check_creator(create, module, name, flag)
    extractor = _attempt(create, f"{flag} failed")
    _check_extractor(extractor, flag)
    return extractor


def sources_of(location: str) -> list[Path]:
    """Return the files that :func:`load_extractor` has loaded: weights, or the module of the user."""
    name, _, path = location.partition("=")
    if name in _NAMES:
        return entries(expanded(path)) if name in _FROM_FOLDER else [expanded(path)] if path else []
    file = getattr(sys.modules[location.partition(":")[0]], "__file__", None)
    return [] if file is None else [Path(file)]


def _attempt(action: Callable[[], Any], failure: str) -> Any:
    """Run code of the user."""
    try:
        return action()
    except (Exception, SystemExit) as error:
        raise UserError(f"{failure} ({type(error).__name__}: {one_line(error)})") from error


def _check_creator(create: Any, module: ModuleType, name: str, flag: str) -> None:
    if create is None:
        raise UserError(f"{flag}: the module {module.__name__} has no attribute {name!r}: expected a function there")
    if not (inspect.isfunction(create) or inspect.isclass(create)):
        raise UserError(f"{flag} is a {type(create).__name__}: expected a function or a class that takes no arguments")
    if _top(create.__module__) != _top(module.__name__):
        raise UserError(f"{flag} is defined in {create.__module__}: expected a function of {module.__name__} itself")
    if inspect.isclass(create) and not callable(getattr(create, "features", None)):
        raise UserError(f"{flag} is a class without the method features(audio, rate): {_EXPECTED}")
    try:
        inspect.signature(create).bind()
    except TypeError as error:
        raise UserError(f"{flag} takes arguments ({error}): expected a function that needs none") from error


def _check_extractor(extractor: Any, flag: str) -> None:
    if not isinstance(extractor, FeatureExtractor):
        raise UserError(
            f"{flag} returned {type(extractor).__name__}, which lacks one of name, sample_rate, fingerprint and "
            f"features(audio, rate): {_EXPECTED}"
        )
    rate = extractor.sample_rate
    if isinstance(rate, bool) or not isinstance(rate, int) or rate not in RATES:
        raise UserError(f"{flag} has a sample rate that is no whole number of Hz from {RATES.start} to {RATES[-1]:,}")
    seconds = getattr(extractor, "seconds", 1.0)
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= _LONGEST:
        raise UserError(f"{flag} has seconds that are no number above 0 and at most {_LONGEST:g}: {_EXPECTED}")
    for attribute in ("name", "fingerprint"):
        if not isinstance(getattr(extractor, attribute), str):
            raise UserError(f"{flag} has no text as its {attribute}: {_EXPECTED}")


def _top(module_name: str) -> str:
    return module_name.partition(".")[0]
