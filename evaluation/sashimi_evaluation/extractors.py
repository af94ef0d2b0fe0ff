"""Interface of feature extractors: networks that replace the classifier as the source of features for the metrics."""

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sashimi_diffusion.data.audio import RATES
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.terminal import one_line, printable

_OWN = {"__main__", "sashimi_diffusion", "sashimi_evaluation", "sashimi_kernels"}
_EXPECTED = "see sashimi_evaluation.FeatureExtractor"


@runtime_checkable
class FeatureExtractor(Protocol):
    """A network that maps audio to feature vectors, for example VGGish, CLAP or PANNs with local weights.

    Attributes:
        name: name in reports.
        sample_rate: sample rate of the input in Hz.
        fingerprint: text that changes if the features of the same audio change, for example a hash of the weights.
    """

    name: str
    sample_rate: int
    fingerprint: str

    def features(self, audio: np.ndarray, rate: int) -> np.ndarray:
        """Return the features of waveforms.

        Args:
            audio: waveforms, float32 (B, L).
            rate: sample rate of ``audio`` in Hz; always equal to ``sample_rate``.

        Returns:
            real numbers, shape (B, D) with the same D in every call.
        """


def load_extractor(location: str) -> FeatureExtractor:
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


def source_of(location: str) -> Path | None:
    """Return the file of the module of a location that :func:`load_extractor` has loaded, or None if it has no file."""
    file = getattr(sys.modules[location.partition(":")[0]], "__file__", None)
    return None if file is None else Path(file)


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
    for attribute in ("name", "fingerprint"):
        if not isinstance(getattr(extractor, attribute), str):
            raise UserError(f"{flag} has no text as its {attribute}: {_EXPECTED}")


def _top(module_name: str) -> str:
    return module_name.partition(".")[0]
