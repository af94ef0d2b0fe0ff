"""Networks on disk: those that come with the package, and those that trainings and conversions write."""

import json
from pathlib import Path

import torch
from diffusers import ModelMixin

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.classifiers.digit_classifier import DigitClassifier
from sashimi_evaluation.classifiers.resnext import ResNeXtClassifier
from sashimi_evaluation.classifiers.small import SmallClassifier
from sashimi_evaluation.classifiers.speech_embedding import SpeechEmbedding

PRETRAINED = Path(__file__).resolve().parent.parent / "pretrained"


def load_classifier(name_or_folder: str | Path = "digits-small", device: str = "cpu") -> DigitClassifier:
    """A classifier on disk; nothing is downloaded.

    Args:
        name_or_folder: a bundled one ("digits-small"), or a folder that a training run (``pipeline``), a conversion or
            ``save_pretrained`` wrote. What is known of its accuracy is read from ``accuracy.json`` there, if it is.
        device: where it runs.

    Raises:
        UserError: there is no such classifier, its files are damaged or of another kind, or ``device`` is not here.
    """
    folder = _folder(name_or_folder)
    model = _load(name_or_folder, "digit classifier", [ResNeXtClassifier, SmallClassifier], device)
    accuracy = folder / "accuracy.json"
    known = _read_json(accuracy) if accuracy.is_file() else None
    return DigitClassifier(model, folder.resolve().name, known)


def load_speech_embedding(name_or_folder: str | Path = "speech-embedding") -> SpeechEmbedding:
    """A speech embedding on disk, in float32; nothing is downloaded.

    Args:
        name_or_folder: the bundled one ("speech-embedding"), or a folder that ``save_pretrained`` wrote.

    Raises:
        UserError: there is no such embedding, or its files are damaged or of another kind.
    """
    return _load(name_or_folder, "speech embedding", [SpeechEmbedding])


def _folder(name_or_folder: str | Path) -> Path:
    bundled = PRETRAINED / str(name_or_folder)
    is_plain_name = isinstance(name_or_folder, str) and Path(name_or_folder).name == name_or_folder
    return bundled if is_plain_name and bundled.is_dir() else Path(name_or_folder)


def _load(asked: str | Path, what: str, kinds: list[type[ModelMixin]], device: str = "cpu") -> ModelMixin:
    folder = _folder(asked)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"there is no {what} {asked}: expected a folder with config.json, or one that comes with the package "
            f"({', '.join(_bundled(kinds))})"
        )
    name = _read_json(folder / "config.json").get("_class_name")
    kind = {kind.__name__: kind for kind in kinds}.get(name)
    if kind is None:
        raise UserError(f"{folder} holds a {name}, not a {what}: expected {' or '.join(k.__name__ for k in kinds)}")
    try:
        return kind.from_pretrained(folder, torch_dtype=torch.float32).to(device)
    except (OSError, ValueError, RuntimeError, AssertionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"the {what} in {folder} cannot be loaded: {reason}") from error


def _bundled(kinds: list[type[ModelMixin]]) -> list[str]:
    names = {kind.__name__ for kind in kinds}
    configs = sorted(PRETRAINED.glob("*/config.json"))
    return [path.parent.name for path in configs if _read_json(path).get("_class_name") in names]


def _read_json(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: expected an object, not a {type(content).__name__}")
    return content
