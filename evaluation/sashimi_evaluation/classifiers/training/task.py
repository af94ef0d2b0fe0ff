"""Classifier training: cross-entropy of augmented recordings, accuracy of recordings without augmentation."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn import functional as F

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.strict_json import json_text
from sashimi_diffusion.training.examples import DROPOUT, spread_evenly, stream
from sashimi_diffusion.training.model_card import Usage
from sashimi_evaluation.classifiers import SmallClassifier, expected_calibration_error, load_speech_embedding
from sashimi_evaluation.classifiers.training.batches import (
    BalancedBatches,
    DigitRecordings,
    fingerprint_of,
    open_sources,
)
from sashimi_evaluation.classifiers.training.config import ClassifierConfig, ClassifierModelConfig

USAGE = Usage(
    what="a classifier of spoken English digits",
    library="sashimi-diffusion",
    pipeline_tag="audio-classification",
    tags=("audio-classification", "sashimi-diffusion"),
    python=(
        "from sashimi_evaluation.classifiers import load_classifier\n\n"
        'classifier = load_classifier("FOLDER")  # of this card\n'
        "logits = classifier(waveforms).logits  # waveforms: (B, 1, 16000), float32, 16 kHz"
    ),
    command="sashimi-evaluate samples --reference recordings --classifier FOLDER",
)


@dataclass
class DigitBatch:
    """Waveforms, float32 (B, 1, 16000), and their digits, int64 (B,)."""

    waveforms: Tensor
    digits: Tensor


class ClassificationLoss(nn.Module):
    """The mean cross-entropy of a classifier."""

    def __init__(self, network: Any, label_smoothing: float) -> None:
        super().__init__()
        self.network, self.label_smoothing = network, label_smoothing

    def forward(self, waveforms: Tensor, digits: Tensor) -> Tensor:
        """Return the loss of waveforms (B, 1, L) and digits (B,), a scalar in nats."""
        logits = self.network(waveforms).logits.float()
        return F.cross_entropy(logits, digits, label_smoothing=self.label_smoothing)


class TrainedClassifier:
    """A classifier and its accuracy, saved in the format of ``load_classifier``.

    Args:
        network: the classifier.
        accuracy: metrics of each source for accuracy.json; empty before the end of the run.
    """

    def __init__(self, network: Any, accuracy: dict[str, dict[str, float]]) -> None:
        self.network, self.accuracy = network, accuracy

    def save_pretrained(self, folder: Path) -> None:
        """Write config.json, the weights and accuracy.json."""
        self.network.save_pretrained(folder)
        (folder / "accuracy.json").write_text(json_text(self.accuracy, indent=1) + "\n", encoding="utf-8")


def _create_model(config: ClassifierModelConfig) -> Any:
    """Return the untrained classifier.

    Raises:
        UserError: invalid arguments, or there is no such embedding.
    """
    embedding = None if config.embedding is None else load_speech_embedding(config.embedding)
    try:
        if embedding is not None:
            return SmallClassifier.on(embedding, **config.arguments)
        return config.network_class(**config.arguments)
    except ValueError as error:
        raise UserError(f"cannot build the network of `model`: {error}") from error


class ClassifierTask:
    """Classifier training; implements :class:`sashimi_diffusion.training.task.Task`."""

    measured: Mapping[str, float] = {}
    chunks = 1
    samples = 0
    against_graph = ""
    usage = USAGE

    def __init__(self, config: ClassifierConfig, device: torch.device, skip_bad_files: bool) -> None:
        self.config, self.device = config, device
        training, self.validation, self.test = (
            open_sources(config.data, split, skip_bad_files) for split in ("train", "validation", "final")
        )
        self.batches = BalancedBatches(training, config)
        self.data = fingerprint_of(training)
        self.network = _create_model(config.model).to(device)
        self.module: nn.Module = ClassificationLoss(self.network, config.objective.label_smoothing)
        self.accuracy: dict[str, dict[str, float]] = {}
        counts = [
            f"{source.name} {len(source):,} training and {len(held_out):,} held-out recordings"
            for source, held_out in zip(training, self.validation, strict=True)
        ]
        self.description = ", ".join(counts)

    def batch(self, step: int, positions: range, global_batch: int) -> DigitBatch:
        """Return the examples at ``positions``."""
        return DigitBatch(*self.batches.examples([step * global_batch + position for position in positions]))

    def complete(self, batch: DigitBatch, step: int, positions: range, global_batch: int) -> DigitBatch:
        """Set the seed of dropout and return ``batch``."""
        # Dropout also depends only on the seed and the examples, so a resumed run equals the uninterrupted one.
        first = step * global_batch + positions.start
        torch.manual_seed(int(stream(DROPOUT, self.config.seed, first).integers(2**63)))
        return batch

    def loss(self, module: nn.Module, batch: DigitBatch) -> Tensor:
        """Return the mean cross-entropy of a batch."""
        return module(batch.waveforms, batch.digits)

    def validate(self, accelerator: Accelerator, network: Any) -> dict[str, float]:
        """Return the loss and the accuracy of each source on held-out recordings, and the loss of all of them.

        Every process classifies all recordings: they are few, and no results have to be gathered.
        """
        metrics: dict[str, float] = {}
        all_losses = []
        for source in self.validation:
            chosen = spread_evenly(len(source), self.config.training.validation_examples)
            log_probabilities = self._log_probabilities(network, source, chosen)
            losses = -log_probabilities[np.arange(len(chosen)), source.digits[chosen]]
            correct = log_probabilities.argmax(axis=1) == source.digits[chosen]
            metrics[f"validation_loss_{source.name}"] = float(losses.mean())
            metrics[f"validation_accuracy_{source.name}"] = float(correct.mean())
            all_losses.append(losses)
        return {"validation_loss": float(np.concatenate(all_losses).mean()), **metrics}

    def conclude(self, accelerator: Accelerator, network: Any) -> dict[str, float]:
        """Return accuracy and calibration error of all test recordings of each source."""
        self.accuracy = {source.name: self._metrics(network, source) for source in self.test}
        return {
            f"test_{metric}_{name}": value
            for name, metrics in self.accuracy.items()
            for metric, value in metrics.items()
        }

    def pipeline(self, network: Any) -> TrainedClassifier:
        """Return the network and its accuracy."""
        return TrainedClassifier(network, self.accuracy)

    def save_samples(self, run: Path, step: int, network: Any) -> str:
        """Do nothing: a classifier draws no samples."""
        return ""

    def _metrics(self, network: Any, source: DigitRecordings) -> dict[str, float]:
        probabilities = np.exp(self._log_probabilities(network, source, list(range(len(source)))))
        correct = probabilities.argmax(axis=1) == source.digits
        per_digit = [correct[source.digits == digit].mean() for digit in np.unique(source.digits)]
        return {
            "recordings": len(source),
            "accuracy": float(correct.mean()),
            "mean_accuracy_of_digits": float(np.mean(per_digit)),
            "calibration_error": expected_calibration_error(probabilities, source.digits),
        }

    @torch.inference_mode()
    def _log_probabilities(self, network: Any, source: DigitRecordings, indices: list[int]) -> np.ndarray:
        """Return the log-probabilities of all digits, float64 (B, 10)."""
        size = self.config.training.batch_size
        parts = []
        for start in range(0, len(indices), size):
            waveforms, _ = source.batch(indices[start : start + size])
            parts.append(network(waveforms.to(self.device)).logits.double().log_softmax(dim=1).cpu())
        return torch.cat(parts).numpy()
