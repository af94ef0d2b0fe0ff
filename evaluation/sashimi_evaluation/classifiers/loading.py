"""Load classifiers and speech embeddings from disk: bundled ones, trained ones and converted ones."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sashimi_diffusion.data.speech_commands import DIGITS
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.paths import is_file, is_folder, kind, read_json, status
from sashimi_diffusion.terminal import printable
from sashimi_evaluation.classifiers.digit_classifier import DigitClassifier
from sashimi_evaluation.classifiers.resnext import ResNeXtClassifier
from sashimi_evaluation.classifiers.small import SmallClassifier
from sashimi_evaluation.classifiers.speech_embedding import SpeechEmbedding

PRETRAINED = Path(__file__).resolve().parent.parent / "pretrained"
_HIGHEST = 4096  # of the numbers in config.json


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
    folder = model_folder(name_or_folder)
    model = _load(name_or_folder, "digit classifier", (ResNeXtClassifier, SmallClassifier), device)
    if model.config.num_classes != len(DIGITS):
        raise UserError(f"{printable(folder)} distinguishes {model.config.num_classes} classes: expected {len(DIGITS)}")
    return DigitClassifier(model, folder.resolve().name, _read_accuracy(folder / "accuracy.json"))


def load_speech_embedding(name_or_folder: str | Path = "speech-embedding") -> SpeechEmbedding:
    """Load a speech embedding from disk in float32; nothing is downloaded.

    Args:
        name_or_folder: name of the bundled embedding ("speech-embedding"), or a folder written by ``save_pretrained``.

    Raises:
        UserError: there is no such embedding, or its files are damaged or of another kind.
    """
    return _load(name_or_folder, "speech embedding", (SpeechEmbedding,))


def model_folder(name_or_folder: str | Path) -> Path:
    """Return the folder of a bundled model, or the given folder."""
    bundled = PRETRAINED / str(name_or_folder)
    is_plain_name = isinstance(name_or_folder, str) and Path(name_or_folder).name == name_or_folder
    return bundled if is_plain_name and is_folder(bundled) else Path(name_or_folder)


def _load(name_or_folder: str | Path, what: str, kinds: tuple[type, ...], device: str | torch.device = "cpu") -> Any:
    folder = model_folder(name_or_folder)
    if not is_file(folder / "config.json"):
        raise UserError(
            f"there is no {what} {printable(name_or_folder)}: expected a folder with config.json, or the name of a "
            f"bundled one ({', '.join(_bundled(kinds))})"
        )
    config = _read_object(folder / "config.json", f"the configuration of a {what}")
    name = config.get("_class_name")
    network: Any = next((kind for kind in kinds if kind.__name__ == name), None)
    if network is None:
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise UserError(f"{printable(folder)} holds a {printable(name)}, not a {what}: expected {expected}")
    _check_sizes(config, folder / "config.json")
    _check_kinds(folder, what)
    try:
        model = network.from_pretrained(folder, torch_dtype=torch.float32).to(device)
    except Exception as error:  # damaged files lead to many kinds of errors
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"the {what} in {printable(folder)} cannot be loaded: {printable(reason)}") from error
    if not all(bool(tensor.isfinite().all()) for tensor in model.state_dict().values()):
        raise UserError(f"the {what} in {printable(folder)} has weights that are NaN or infinite: use another one")
    return model


def _check_kinds(folder: Path, what: str) -> None:
    """Refuse a folder with a FIFO or a device, which would be read for ever."""
    for path in sorted(folder.iterdir()):
        found = status(path)
        if found is not None and not (is_file(path) or is_folder(path)):
            raise UserError(f"{printable(path)} is {kind(found)}: expected a file of a {what}")


def _check_sizes(config: Mapping[str, Any], path: Path) -> None:
    """Refuse numbers in a configuration that no classifier has, before a network of that size is built."""
    for key, value in config.items():
        for number in value if isinstance(value, list) else [value]:
            if isinstance(number, int | float) and not -_HIGHEST <= number <= _HIGHEST:
                raise UserError(f"{printable(path)}: {printable(key)} is above {_HIGHEST}, too large for a classifier")


def _bundled(kinds: tuple[type, ...]) -> list[str]:
    names = {kind.__name__ for kind in kinds}
    configs = sorted(PRETRAINED.glob("*/config.json"))
    return [path.parent.name for path in configs if _read_object(path, "a configuration").get("_class_name") in names]


def _read_accuracy(path: Path) -> dict[str, Any] | None:
    if status(path) is None:
        return None
    accuracy = _read_object(path, "the accuracy of a classifier")
    wrong = next((name for name, test in accuracy.items() if not isinstance(test, dict)), None)
    if wrong is not None:
        raise UserError(f"{printable(path)} is damaged: {printable(wrong)} has no metrics")
    return accuracy


def _read_object(path: Path, what: str) -> dict[str, Any]:
    content = read_json(path, what)
    if not isinstance(content, dict):
        raise UserError(f"{printable(path)} is damaged: expected an object, not a {type(content).__name__}")
    return content
