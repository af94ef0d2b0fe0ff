"""Preparation of real recordings as the training data of a model were: sample rate, level and length."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sashimi_diffusion.bundled import local_folder
from sashimi_diffusion.data.audio import RATES, resample
from sashimi_diffusion.data.cache import rms_of
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.paths import is_file, read_text
from sashimi_diffusion.terminal import printable

_CARD = "README.md"
_NORMALIZATION = re.compile(r"\bnormalize_rms: (\d+(?:\.\d+)?(?:e-?\d+)?)\b")  # among the settings on a card
_LIMITS: dict[str, tuple[float, float]] = {"rate": (RATES[0], RATES[-1]), "length": (1, 2**31), "rms": (1e-9, 1e3)}
_EXPECTED = "expected none, or some of rate=HZ,length=SAMPLES,rms=LEVEL such as rate=8000,length=5120,rms=0.04"


@dataclass(frozen=True)
class Preparation:
    """What is done to a recording, in the order of training: resample, scale, then cut or pad. None leaves it as it is.

    Args:
        rate: sample rate in Hz.
        length: samples of a clip at that rate; longer recordings are cut and shorter ones padded with zeros.
        rms: root mean square to which the recording is scaled before it is cut; full scale is 1.0.
    """

    rate: int | None = None
    length: int | None = None
    rms: float | None = None

    def prepare(self, samples: np.ndarray, rate: int, max_seconds: float) -> tuple[np.ndarray, int]:
        """Return the prepared samples, float32 (L,), and their rate in Hz.

        Args:
            samples: the recording, float32 (L,).
            rate: its sample rate in Hz.
            max_seconds: duration after which padding ends.
        """
        if self.rate is not None:
            samples, rate = resample(samples, rate, self.rate), self.rate
        if self.rms is not None and (level := rms_of(samples)) > 0:  # silence cannot be scaled
            samples = samples * np.float32(self.rms / level)
        if self.length is not None:
            samples = fit_length(samples, min(self.length, round(max_seconds * rate)))
        return samples, rate

    def __str__(self) -> str:
        parts = [
            None if self.rate is None else f"resampled to {self.rate} Hz",
            None if self.rms is None else f"scaled to a root mean square of {self.rms:g}",
            None if self.length is None else f"cut or padded to {self.length} samples",
        ]
        return ", ".join(part for part in parts if part) or "as they are"


def fit_length(waveform: np.ndarray, length: int) -> np.ndarray:
    """Crop a waveform (L,) to ``length`` samples or pad it with zeros on the right, as the official code does."""
    fitted = np.zeros(length, dtype=np.float32)
    fitted[: min(length, len(waveform))] = waveform[:length]
    return fitted


def recorded_preparation(record: Mapping[str, Any], path: Path) -> Preparation:
    """Return how the training data of the pipeline that generated clips were prepared, as far as it is known.

    Rate and length are those of the clips. The level is on the card of the pipeline, if the pipeline is on this
    computer and its recordings were scaled.

    Args:
        record: content of ``samples.json``.
        path: the file, for error messages.

    Raises:
        UserError: the record has an impossible rate or length.
    """
    rate, length = record.get("sample_rate"), record.get("samples_per_clip")
    for name, value, kind in (("sample_rate", rate, "rate"), ("samples_per_clip", length, "length")):
        low, high = _LIMITS[kind]
        if value is not None and not (type(value) is int and low <= value <= high):
            found = printable(repr(value)[:40])
            raise UserError(f"{printable(path)}: {name} is {found}, expected a whole number from {low} to {high}")
    pipeline = record.get("pipeline")
    source = pipeline.get("name") if isinstance(pipeline, dict) else None
    return Preparation(rate, length, training_level(source) if isinstance(source, str) else None)


def training_level(pipeline: str) -> float | None:
    """Return the root mean square of the training recordings on the card of a pipeline on this computer, or None."""
    folder = local_folder(pipeline)
    if folder is None or not is_file(folder / _CARD):
        return None
    found = _NORMALIZATION.search(read_text(folder / _CARD, "the card of a pipeline"))
    return None if found is None else float(found[1])


def chosen_preparation(option: str | None, recorded: Mapping[str, Preparation]) -> tuple[Preparation, str]:
    """Return the preparation of the held-out recordings, and a note on it for reports.

    Args:
        option: ``rate=8000,length=5120,rms=0.04``, some of it, "none", or None for the recorded values. A value that
            it leaves out is the recorded one if all sets that have one have the same.
        recorded: what is known about each generated set, by its name.

    Raises:
        UserError: the option is invalid, or there is a length but no rate.
    """
    if option == "none":
        return Preparation(), ""
    chosen = {} if option is None else _parsed(option)
    differing = []
    for name in ("rate", "length", "rms"):
        values = {value for each in recorded.values() if (value := getattr(each, name)) is not None}
        if name not in chosen and len(values) > 1:
            differing.append(name)
        chosen.setdefault(name, values.pop() if len(values) == 1 else None)
    if chosen["length"] is not None and chosen["rate"] is None:
        if option is not None and "length" in option:
            raise UserError("--prepare has a length in samples but no rate: add rate=HZ")
        chosen["length"] = None  # sets that differ in rate, but not in samples
    preparation = Preparation(**chosen)
    if not recorded and option is None:
        return preparation, ""
    origin = "--prepare" if option is not None else "the training data of the generated clips"
    remarks = [f"the generated clips differ in {' and '.join(differing)}"] if differing else []
    if preparation.rms is None:
        remarks.append("the level is unchanged: give --prepare rms=LEVEL if training scaled the recordings")
    return preparation, "; ".join([f"prepared like {origin}: {preparation}", *remarks])


def _parsed(option: str) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for part in option.split(","):
        name, _, text = part.partition("=")
        kinds: dict[str, Any] = {"rate": int, "length": int, "rms": float}
        try:
            value = kinds[name](text)
        except (KeyError, ValueError):
            raise UserError(f"--prepare {printable(option)}: {_EXPECTED}") from None
        low, high = _LIMITS[name]
        if name in given or not low <= value <= high:
            raise UserError(f"--prepare {printable(option)}: {name} must be one number from {low:g} to {high:g}")
        given[name] = value
    return given
