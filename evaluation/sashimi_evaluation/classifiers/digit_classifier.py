"""A classifier as the metrics use it: arrays of audio in, features and probabilities out."""

import hashlib
import json
import math

import numpy as np
import torch
from diffusers import ModelMixin

from sashimi_diffusion.data import resample
from sashimi_diffusion.data.speech_commands import DIGITS
from sashimi_diffusion.errors import UserError
from sashimi_evaluation.classifiers.mel import SAMPLE_RATE

FEATURES_VERSION = 2  # raise it whenever the same weights give other features
_BATCH = 64
_FILTER_SECONDS = 0.1  # more than resampling looks ahead


class DigitClassifier:
    """A network that hears one second of audio, the way the metrics use it.

    Clips are cut after one second, and filled up with zeros on the right.

    Args:
        model: a :class:`.ResNeXtClassifier` or :class:`.SmallClassifier`; put into evaluation mode.
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
        """What distances between sets of clips are measured in; the networks say what it is.

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


def _fingerprint(model: ModelMixin) -> str:
    config = {key: value for key, value in model.config.items() if not key.startswith("_")}
    described = {"class": type(model).__name__, "version": FEATURES_VERSION, "config": config}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
