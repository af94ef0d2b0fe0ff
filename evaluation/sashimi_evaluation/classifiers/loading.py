"""Load classifiers and speech embeddings from disk: bundled ones, trained ones and converted ones."""

from pathlib import Path
from typing import Any

import torch

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.models.stored import load_network, read_object
from sashimi_diffusion.paths import is_file, is_folder, status
from sashimi_diffusion.terminal import first_line, one_line, printable
from sashimi_evaluation.classifiers.resnext import ResNeXtClassifier
from sashimi_evaluation.classifiers.small import SmallClassifier
from sashimi_evaluation.classifiers.speech_embedding import SpeechEmbedding
from sashimi_evaluation.classifiers.stored import PRETRAINED
from sashimi_evaluation.classifiers.word_classifier import WordClassifier

_CLASSIFIERS = (ResNeXtClassifier, SmallClassifier)


def load_classifier(name_or_folder: str | Path = "digits-small", device: str | torch.device = "cpu") -> WordClassifier:
    """Load a classifier from disk; nothing is downloaded.

    Args:
        name_or_folder: name of a bundled classifier ("digits-small", "words-small"), or a folder written by a training
            run (its subfolder ``pipeline``), by sashimi-convert or by ``save_pretrained``. The accuracy is read from
            ``accuracy.json`` in that folder, if the file exists.
        device: device of the network.

    Raises:
        UserError: there is no such classifier, its files are damaged or of another kind, or ``device`` is not
            available.
    """
    folder = model_folder(name_or_folder)
    model = _load(name_or_folder, "word classifier", _CLASSIFIERS, device)
    if model.config.num_classes != len(model.class_names):
        raise UserError(
            f"{printable(folder)} distinguishes {model.config.num_classes} classes: expected {len(model.class_names)}, "
            "the digits, because its config.json has no class_names"
        )
    return WordClassifier(model, folder.resolve().name, _read_accuracy(folder / "accuracy.json"))


def bundled_classifiers(device: str | torch.device = "cpu") -> list[WordClassifier]:
    """Return all bundled classifiers in the order of their names."""
    return [load_classifier(name, device) for name in _bundled(_CLASSIFIERS)]


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
    name = read_object(folder / "config.json").get("_class_name")
    kind: Any = next((kind for kind in kinds if kind.__name__ == name), None)
    if kind is None:
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise UserError(f"{printable(folder)} holds a {one_line(name, 100)}, not a {what}: expected {expected}")
    network = load_network(kind, folder, torch.float32)
    if not all(bool(tensor.isfinite().all()) for tensor in network.state_dict().values()):
        raise UserError(f"the {what} in {printable(folder)} has weights that are NaN or infinite: use another one")
    try:
        return network.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"the {what} in {printable(folder)} cannot be loaded: {first_line(error)}") from error


def _bundled(kinds: tuple[type, ...]) -> list[str]:
    names = {kind.__name__ for kind in kinds}
    configs = sorted(PRETRAINED.glob("*/config.json"))
    return [path.parent.name for path in configs if read_object(path).get("_class_name") in names]


def _read_accuracy(path: Path) -> dict[str, Any] | None:
    if status(path) is None:
        return None
    accuracy = read_object(path)
    for name, test in accuracy.items():
        if not isinstance(test, dict) or not all(map(_is_metric, test.values())):
            raise UserError(
                f"{printable(path)} is damaged: {printable(name)} has no metrics, which are numbers by name"
            )
    return accuracy


def _is_metric(value: Any) -> bool:
    return value is None or isinstance(value, float) or (type(value) is int and abs(value) < 2**63)
