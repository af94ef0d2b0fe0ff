"""Word classifier: features and class probabilities of waveforms in NumPy arrays."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils import BaseOutput
from torch import Tensor

from sashimi_diffusion.data import resample
from sashimi_diffusion.data.speech_commands import DIGITS
from sashimi_diffusion.errors import UserError
from sashimi_evaluation.classifiers.mel import SAMPLE_RATE
from sashimi_evaluation.classifiers.stored import EvaluationNetwork

FEATURES_VERSION = 2  # increase it whenever the same weights give other features
_BATCH = 64
_FILTER_SECONDS = 0.1  # longer than the filter of the resampler


@dataclass
class ClassifierOutput(BaseOutput):
    """Output of a classifier network.

    Args:
        features: features for distances between sets of clips, shape (B, D).
        logits: unnormalized log-probabilities of the classes, shape (B, classes).
    """

    features: Tensor
    logits: Tensor


class ClassifierNetwork(EvaluationNetwork):
    """Base class of networks that map waveforms (B, 1, L) at 16 kHz to :class:`ClassifierOutput`.

    The names of the classes are ``config.class_names``; None, as in files of earlier versions, means the ten digits.
    """

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, in order."""
        return list(self.config.class_names or DIGITS)


def check_class_names(config: Mapping[str, Any]) -> None:
    """Check that the classes of a classifier have different names, and as many as there are classes.

    Raises:
        UserError: the names do not fit.
    """
    names, number = config["class_names"], config["num_classes"]
    if names is None:
        return
    if len(names) != number:
        raise UserError(f"class_names has {len(names)} names, num_classes is {number}: expected one for each class")
    if len(set(names)) < number:
        raise UserError("class_names has a name twice: expected different names")


class WordClassifier:
    """A classifier network with its name, its accuracy and a NumPy interface.

    Clips are cropped to one second, or padded with zeros on the right.

    Args:
        model: a :class:`.ResNeXtClassifier` or :class:`.SmallClassifier`; it is set to evaluation mode.
        name: name in reports.
        accuracy: results on held-out recordings by data set, the content of ``accuracy.json``.

    Attributes:
        name: name in reports.
        sample_rate: 16000 Hz; audio of other rates is resampled.
        seconds: 1.0, the duration of the input.
        class_names: the words, in the order of the probabilities.
        accuracy: as given; empty if unknown.
        fingerprint: hash of the weights and the configuration; changes whenever the features of the same audio change.
    """

    sample_rate = SAMPLE_RATE
    seconds = 1.0

    def __init__(self, model: ClassifierNetwork, name: str, accuracy: dict[str, Any] | None = None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.name = name
        self.accuracy = accuracy or {}
        self.class_names = model.class_names
        self.fingerprint = _fingerprint(model)

    def features(self, audio: np.ndarray, rate: int) -> np.ndarray:
        """Return the features of waveforms, for distances between sets of clips.

        Args:
            audio: waveforms, float32 (B, L). The result does not depend on their level.
            rate: sample rate of the waveforms in Hz.

        Returns:
            float32, shape (B, D); D depends on the network.

        Raises:
            UserError: the audio has another shape or non-finite samples, or the rate is invalid.
        """
        return self.classify(audio, rate)[0]

    @torch.inference_mode()
    def classify(self, audio: np.ndarray, rate: int) -> tuple[np.ndarray, np.ndarray]:
        """Return features, float32 (B, D), and class probabilities, float32 (B, classes); see :meth:`features`."""
        audio = one_second(audio, rate)
        features, probabilities = [], []
        for start in range(0, len(audio), _BATCH):
            waveform = torch.from_numpy(audio[start : start + _BATCH])[:, None].to(self.model.device)
            output = self.model(waveform)
            features.append(output.features.float().cpu())
            probabilities.append(output.logits.double().softmax(dim=1).float().cpu())
        return torch.cat(features).numpy(), torch.cat(probabilities).numpy()


def one_second(audio: np.ndarray, rate: int) -> np.ndarray:
    """Resample waveforms (B, L) from ``rate`` Hz to 16 kHz, and crop or pad them to float32 (B, 16000).

    Raises:
        UserError: the audio has another shape or non-finite samples, or the rate is invalid.
    """
    audio = np.asarray(audio, dtype=np.float32)
    if audio.ndim != 2 or audio.size == 0:
        raise UserError(f"expected audio of shape (clips, samples), at least one of each, got {audio.shape}")
    if isinstance(rate, bool) or not isinstance(rate, int | np.integer) or rate < 1:
        raise UserError(f"the sample rate must be a whole number of at least 1 Hz, got {rate!r}")
    if not np.isfinite(audio).all():
        raise UserError("the audio has non-finite samples (NaN or infinity): leave such clips out")
    # Cropping first saves the resampling of samples that are not used.
    cropped = audio[:, : math.ceil(rate * (1 + _FILTER_SECONDS))]
    resampled = resample(cropped, int(rate), SAMPLE_RATE)[:, :SAMPLE_RATE]
    return np.pad(resampled, ((0, 0), (0, SAMPLE_RATE - resampled.shape[1])))


def _fingerprint(model: ClassifierNetwork) -> str:
    # The names of the classes do not change the features.
    config = {key: value for key, value in model.config.items() if not key.startswith("_") and key != "class_names"}
    description = {"class": type(model).__name__, "version": FEATURES_VERSION, "config": config}
    digest = hashlib.sha256(json.dumps(description, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
