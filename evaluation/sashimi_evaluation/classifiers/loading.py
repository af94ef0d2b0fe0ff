"""Load classifiers and speech embeddings from disk: bundled ones, trained ones and converted ones."""

import json
from pathlib import Path
from typing import Any

import torch

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.classifiers.digit_classifier import DigitClassifier
from sashimi_evaluation.classifiers.resnext import ResNeXtClassifier
from sashimi_evaluation.classifiers.small import SmallClassifier
from sashimi_evaluation.classifiers.speech_embedding import SpeechEmbedding

PRETRAINED = Path(__file__).resolve().parent.parent / "pretrained"


def load_classifier(name_or_folder: str | Path = "digits-small", device: str | torch.device = "cpu") -> DigitClassifier:
    """Load a classifier from disk; nothing is downloaded.

    Args:
        name_or_folder: name of a bundled classifier ("digits-small"), or a folder written by a training run
            (its subfolder ``pipeline``), by sashimi-convert or by ``save_pretrained``. The accuracy is read from
            ``accuracy.json`` in that folder, if the file exists.
        device: device of the network.

    Raises:
        UserError: there is no such classifier, its files are damaged or of another kind, or ``device`` is not
            available.
    """
    folder = _folder(name_or_folder)
    model = _load(name_or_folder, "digit classifier", (ResNeXtClassifier, SmallClassifier), device)
    accuracy = folder / "accuracy.json"
    return DigitClassifier(model, folder.resolve().name, _read_json(accuracy) if accuracy.is_file() else None)


def load_speech_embedding(name_or_folder: str | Path = "speech-embedding") -> SpeechEmbedding:
    """Load a speech embedding from disk in float32; nothing is downloaded.

    Args:
        name_or_folder: name of the bundled embedding ("speech-embedding"), or a folder written by ``save_pretrained``.

    Raises:
        UserError: there is no such embedding, or its files are damaged or of another kind.
    """
    return _load(name_or_folder, "speech embedding", (SpeechEmbedding,))


def _folder(name_or_folder: str | Path) -> Path:
    bundled = PRETRAINED / str(name_or_folder)
    is_plain_name = isinstance(name_or_folder, str) and Path(name_or_folder).name == name_or_folder
    return bundled if is_plain_name and bundled.is_dir() else Path(name_or_folder)


def _load(name_or_folder: str | Path, what: str, kinds: tuple[type, ...], device: str | torch.device = "cpu") -> Any:
    folder = _folder(name_or_folder)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"there is no {what} {name_or_folder}: expected a folder with config.json, or the name of a bundled one "
            f"({', '.join(_bundled(kinds))})"
        )
    name = _read_json(folder / "config.json").get("_class_name")
    kind: Any = next((kind for kind in kinds if kind.__name__ == name), None)
    if kind is None:
        raise UserError(f"{folder} holds a {name}, not a {what}: expected {' or '.join(k.__name__ for k in kinds)}")
    try:
        return kind.from_pretrained(folder, torch_dtype=torch.float32).to(device)
    except (OSError, ValueError, RuntimeError, AssertionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"the {what} in {folder} cannot be loaded: {reason}") from error


def _bundled(kinds: tuple[type, ...]) -> list[str]:
    names = {kind.__name__ for kind in kinds}
    configs = sorted(PRETRAINED.glob("*/config.json"))
    return [path.parent.name for path in configs if _read_json(path).get("_class_name") in names]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: expected an object, not a {type(content).__name__}")
    return content
