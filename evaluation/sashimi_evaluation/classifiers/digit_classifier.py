"""A classifier as the metrics use it: arrays of audio in, features and probabilities out."""

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import torch
from diffusers import ModelMixin

from sashimi_diffusion.data import resample
from sashimi_diffusion.data.speech_commands import DIGITS
from sashimi_diffusion.errors import UserError
from sashimi_evaluation.classifiers.mel import SAMPLE_RATE
from sashimi_evaluation.classifiers.resnext import ResNeXtClassifier
from sashimi_evaluation.classifiers.small import SmallClassifier

PRETRAINED = Path(__file__).resolve().parent.parent / "pretrained"
CLASSES = {"ResNeXtClassifier": ResNeXtClassifier, "SmallClassifier": SmallClassifier}
FEATURES_VERSION = 1  # raise it whenever the same weights give other features
_BATCH = 64
_FILTER_SECONDS = 0.1  # more than resampling looks ahead


class DigitClassifier:
    """A network that hears one second of audio, the way the metrics use it.

    Clips are cut after one second, and filled up with zeros on the right.

    Args:
        model: a :class:`ResNeXtClassifier` or :class:`SmallClassifier`; put into evaluation mode.
        name: what reports call it.
        accuracy: what is known of how often it is right, by data set.

    Attributes:
        name: what reports call it.
        sample_rate: 16000; audio of other rates is resampled.
        seconds: 1.0, what is heard of a clip.
        class_names: the digits, "zero" to "nine".
        accuracy: as given; empty if nothing is known.
        fingerprint: hash of the weights and the configuration; changes whenever the features of the same audio do.
    """

    sample_rate = SAMPLE_RATE
    seconds = 1.0

    def __init__(self, model: ModelMixin, name: str, accuracy: dict | None = None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.name = name
        self.accuracy = accuracy or {}
        self.class_names = list(DIGITS)
        self.fingerprint = _fingerprint(model)

    def features(self, audio: np.ndarray, rate: int) -> np.ndarray:
        """What the last linear layer is given.

        Args:
            audio: waveforms, float32 (B, L); the level does not matter.
            rate: their sample rate in Hz.

        Returns:
            float32, shape (B, D).

        Raises:
            UserError: misshapen or not finite audio, or a rate that is none.
        """
        return self.classify(audio, rate)[0]

    @torch.inference_mode()
    def classify(self, audio: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray]:
        """The features, and the probabilities of the digits, float32 (B, 10); see :meth:`features`."""
        audio = one_second(audio, rate)
        features, probabilities = [], []
        for start in range(0, len(audio), _BATCH):
            waveform = torch.from_numpy(audio[start : start + _BATCH])[:, None].to(self.model.device)
            output = self.model(waveform)
            features.append(output.features.float().cpu())
            probabilities.append(output.logits.double().softmax(dim=1).float().cpu())
        return torch.cat(features).numpy(), torch.cat(probabilities).numpy()


def one_second(audio: np.ndarray, rate: int) -> np.ndarray:
    """Waveforms (B, L) at ``rate`` Hz as float32 (B, 16000) at 16 kHz: cut, or filled up with zeros on the right.

    Raises:
        UserError: misshapen or not finite audio, or a rate that is none.
    """
    audio = np.asarray(audio, dtype=np.float32)
    if audio.ndim != 2 or audio.size == 0:
        raise UserError(f"expected audio of shape (clips, samples), at least one of each, got {audio.shape}")
    if isinstance(rate, bool) or not isinstance(rate, int | np.integer) or rate < 1:
        raise UserError(f"the sample rate must be a whole number of at least 1 Hz, got {rate!r}")
    if not np.isfinite(audio).all():
        raise UserError("the audio has non-finite samples (NaN or infinity): leave such clips out")
    heard = resample(audio[:, : math.ceil(rate * (1 + _FILTER_SECONDS))], int(rate), SAMPLE_RATE)[:, :SAMPLE_RATE]
    return np.pad(heard, ((0, 0), (0, SAMPLE_RATE - heard.shape[1])))


def load_classifier(name_or_folder: str | Path = "digits-small", device: str = "cpu") -> DigitClassifier:
    """A classifier on disk; nothing is downloaded.

    Args:
        name_or_folder: a bundled one ("digits-small"), or a folder that a training run (``pipeline``), a conversion or
            ``save_pretrained`` wrote. What is known of its accuracy is read from ``accuracy.json`` there, if it is.
        device: where it runs.

    Raises:
        UserError: there is no such classifier, or its files are damaged or of another kind.
    """
    bundled = PRETRAINED / str(name_or_folder)
    folder = bundled if _is_plain_name(name_or_folder) and bundled.is_dir() else Path(name_or_folder)
    config = _read_json(folder / "config.json", name_or_folder)
    kind = CLASSES.get(config.get("_class_name"))
    if kind is None:
        raise UserError(
            f"{folder} holds a {config.get('_class_name')}, not a digit classifier: expected {' or '.join(CLASSES)}"
        )
    try:
        model = kind.from_pretrained(folder, torch_dtype=torch.float32)
        model = model.to(device)
    except (OSError, ValueError, RuntimeError, AssertionError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"the classifier in {folder} cannot be loaded: {reason}") from error
    accuracy = folder / "accuracy.json"
    known = _read_json(accuracy, name_or_folder) if accuracy.is_file() else None
    return DigitClassifier(model, folder.resolve().name, known)


def bundled_classifiers() -> list[str]:
    """Names of the classifiers that come with the package."""
    return sorted(path.parent.name for path in PRETRAINED.glob("*/config.json"))


def _is_plain_name(name: str | Path) -> bool:
    return isinstance(name, str) and Path(name).name == name


def _read_json(path: Path, asked: str | Path) -> dict:
    if not path.is_file():
        names = ", ".join(bundled_classifiers()) or "none here"
        raise UserError(
            f"there is no classifier {asked}: expected a folder with config.json, or one that comes with the package "
            f"({names}); recipes/train_digit_classifier.py trains one"
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path} is damaged: expected an object, not a {type(content).__name__}")
    return content


def _fingerprint(model: ModelMixin) -> str:
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    described = {"class": type(model).__name__, "version": FEATURES_VERSION, "config": config}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
