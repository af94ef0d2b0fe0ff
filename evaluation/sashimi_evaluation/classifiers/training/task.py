"""The training of a digit classifier: cross-entropy on changed recordings, accuracy on unchanged ones."""

import json
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from diffusers import ModelMixin
from torch import Tensor, nn
from torch.nn import functional as F

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.training.examples import DROPOUT, spread_evenly, stream
from sashimi_evaluation.classifiers import SmallClassifier, expected_calibration_error, load_speech_embedding
from sashimi_evaluation.classifiers.training.batches import (
    BalancedBatches,
    DigitRecordings,
    fingerprint_of,
    open_sources,
)
from sashimi_evaluation.classifiers.training.config import ClassifierConfig, ClassifierModelConfig


class ClassificationLoss(nn.Module):
    """The mean cross-entropy of waveforms (B, 1, L) and digits (B,)."""

    def __init__(self, network: ModelMixin, label_smoothing: float) -> None:
        super().__init__()
        self.network, self.label_smoothing = network, label_smoothing

    def forward(self, waveforms: Tensor, digits: Tensor) -> Tensor:
        """A scalar, in nats."""
        logits = self.network(waveforms).logits.float()
        return F.cross_entropy(logits, digits, label_smoothing=self.label_smoothing)


class TrainedClassifier:
    """What a run saves: the network, and accuracy.json once the run has concluded, for ``load_classifier``."""

    def __init__(self, network: ModelMixin, accuracy: dict[str, dict[str, float]]) -> None:
        self.network, self.accuracy = network, accuracy

    def save_pretrained(self, folder: Path) -> None:
        """Write config.json, the weights and accuracy.json."""
        self.network.save_pretrained(folder)
        (folder / "accuracy.json").write_text(json.dumps(self.accuracy, indent=1) + "\n", encoding="utf-8")


def _network(config: ClassifierModelConfig) -> ModelMixin:
    embedding = None if config.embedding is None else load_speech_embedding(config.embedding)
    try:
        if embedding is not None:
            return SmallClassifier.on(embedding, **config.arguments)
        return config.network_class(**config.arguments)
    except ValueError as error:
        raise UserError(f"the network cannot be built as `model` says: {error}") from error


class ClassifierTask:
    """See :class:`sashimi_diffusion.training.task.Task`."""

    chunks = 1
    samples = 0

    def __init__(self, config: ClassifierConfig, device: torch.device, skip_bad_files: bool) -> None:
        self.config, self.device = config, device
        training, self.validation, self.figures = (
            open_sources(config.data, split, skip_bad_files) for split in ("train", "validation", "figures")
        )
        self.batches = BalancedBatches(training, config)
        self.data = fingerprint_of(training)
        self.network = _network(config.model).to(device)
        self.module = ClassificationLoss(self.network, config.objective.label_smoothing)
        self.accuracy: dict[str, dict[str, float]] = {}
        counts = [
            f"{source.name} {len(source):,} training and {len(held_out):,} held-out recordings"
            for source, held_out in zip(training, self.validation, strict=True)
        ]
        self.description = ", ".join(counts)

    def loss(self, module: nn.Module, step: int, positions: range, global_batch: int) -> Tensor:
        """The mean cross-entropy of the examples at ``positions``."""
        numbers = [step * global_batch + position for position in positions]
        waveforms, digits = self.batches.examples(numbers)
        # What is left out is a function of the seed and the examples, too: a resumed run is the uninterrupted one.
        torch.manual_seed(int(stream(DROPOUT, self.config.seed, numbers[0]).integers(2**63)))
        return module(waveforms.to(self.device), digits.to(self.device))

    def validate(self, accelerator: Accelerator, network: ModelMixin) -> dict[str, float]:
        """Loss and accuracy of unchanged held-out recordings, of each source and of all.

        Every process hears all of them: they are few, and nothing has to be gathered.
        """
        figures, everything = {}, []
        for source in self.validation:
            chosen = spread_evenly(len(source), self.config.training.validation_examples)
            log_probabilities = self._hear(network, source, chosen)
            losses = -log_probabilities[np.arange(len(chosen)), source.digits[chosen]]
            right = log_probabilities.argmax(axis=1) == source.digits[chosen]
            figures[f"validation_loss_{source.name}"] = float(losses.mean())
            figures[f"validation_accuracy_{source.name}"] = float(right.mean())
            everything.append(losses)
        return {"validation_loss": float(np.concatenate(everything).mean()), **figures}

    def conclude(self, accelerator: Accelerator, network: ModelMixin) -> dict[str, float]:
        """How often the classifier is right, and knows it, on all test recordings of each source."""
        self.accuracy = {source.name: self._figures(network, source) for source in self.figures}
        return {
            f"test_{figure}_{name}": value
            for name, figures in self.accuracy.items()
            for figure, value in figures.items()
        }

    def pipeline(self, network: ModelMixin) -> TrainedClassifier:
        """The network, and how good it is."""
        return TrainedClassifier(network, self.accuracy)

    def save_samples(self, run: Path, step: int, network: ModelMixin) -> str:
        """Nothing: a classifier draws none."""
        return ""

    def _figures(self, network: ModelMixin, source: DigitRecordings) -> dict[str, float]:
        probabilities = np.exp(self._hear(network, source, list(range(len(source)))))
        right = probabilities.argmax(axis=1) == source.digits
        per_digit = [right[source.digits == digit].mean() for digit in np.unique(source.digits)]
        return {
            "recordings": len(source),
            "accuracy": float(right.mean()),
            "mean_accuracy_of_digits": float(np.mean(per_digit)),
            "calibration_error": expected_calibration_error(probabilities, source.digits),
        }

    @torch.inference_mode()
    def _hear(self, network: ModelMixin, source: DigitRecordings, indices: list[int]) -> np.ndarray:
        """Logarithms of the probabilities, float64 (B, 10)."""
        size = self.config.training.batch_size
        parts = []
        for start in range(0, len(indices), size):
            waveforms, _ = source.batch(indices[start : start + size])
            parts.append(network(waveforms.to(self.device)).logits.double().log_softmax(dim=1).cpu())
        return torch.cat(parts).numpy()
