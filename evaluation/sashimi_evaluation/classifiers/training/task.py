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
    WordRecordings,
    fingerprint_of,
    open_sources,
)
from sashimi_evaluation.classifiers.training.config import ClassifierConfig, ClassifierModelConfig


@dataclass
class WordBatch:
    """Waveforms, float32 (B, 1, 16000), and their labels, int64 (B,)."""

    waveforms: Tensor
    labels: Tensor


class ClassificationLoss(nn.Module):
    """The mean cross-entropy of a classifier."""

    def __init__(self, network: Any, label_smoothing: float) -> None:
        super().__init__()
        self.network, self.label_smoothing = network, label_smoothing

    def forward(self, waveforms: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of waveforms (B, 1, L) and labels (B,), a scalar in nats."""
        logits = self.network(waveforms).logits.float()
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)


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


def classifier_usage(network: Any) -> Usage:
    """Return what the card of a classifier says."""
    return Usage(
        what="a classifier of spoken words",
        network=network,
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


def _create_model(config: ClassifierModelConfig, words: list[str] | None) -> Any:
    """Return the untrained classifier of words; None: of the ten digits.

    Raises:
        UserError: invalid arguments, or there is no such embedding.
    """
    embedding = None if config.embedding is None else load_speech_embedding(config.embedding)
    arguments = (
        config.arguments if words is None else {**config.arguments, "num_classes": len(words), "class_names": words}
    )
    try:
        if embedding is not None:
            return SmallClassifier.on(embedding, **arguments)
        return config.network_class(**arguments)
    except ValueError as error:
        raise UserError(f"cannot build the network of `model`: {error}") from error


class ClassifierTask:
    """Classifier training; implements :class:`sashimi_diffusion.training.task.Task`."""

    measured: Mapping[str, float] = {}
    chunks = 1
    samples = 0
    against_graph = ""

    def __init__(self, config: ClassifierConfig, device: torch.device, skip_bad_files: bool) -> None:
        self.config, self.device = config, device
        training, self.validation, self.test = (
            open_sources(config.data, split, skip_bad_files) for split in ("train", "validation", "final")
        )
        self.batches = BalancedBatches(training, config)
        self.data = fingerprint_of(training)
        self.network = _create_model(config.model, config.data.words).to(device)
        self.module: nn.Module = ClassificationLoss(self.network, config.objective.label_smoothing)
        self.usage = classifier_usage(self.network)
        self.accuracy: dict[str, dict[str, float]] = {}
        counts = [
            f"{source.name} {len(source):,} training and {len(held_out):,} held-out recordings"
            for source, held_out in zip(training, self.validation, strict=True)
        ]
        self.description = ", ".join(counts)

    def batch(self, step: int, positions: range, global_batch: int) -> WordBatch:
        """Return the examples at ``positions``."""
        return WordBatch(*self.batches.examples([step * global_batch + position for position in positions]))

    def complete(self, batch: WordBatch, step: int, positions: range, global_batch: int) -> WordBatch:
        """Set the seed of dropout and return ``batch``."""
        # Dropout also depends only on the seed and the examples, so a resumed run equals the uninterrupted one.
        first = step * global_batch + positions.start
        torch.manual_seed(int(stream(DROPOUT, self.config.seed, first).integers(2**63)))
        return batch

    def loss(self, module: nn.Module, batch: WordBatch) -> Tensor:
        """Return the mean cross-entropy of a batch."""
        return module(batch.waveforms, batch.labels)

    def validate(self, accelerator: Accelerator, network: Any) -> dict[str, float]:
        """Return the loss and the accuracy of each source on held-out recordings, and the loss of all of them.

        Every process classifies all recordings: they are few, and no results have to be gathered.
        """
        metrics: dict[str, float] = {}
        all_losses = []
        for source in self.validation:
            chosen = spread_evenly(len(source), self.config.training.validation_examples)
            log_probabilities = self._log_probabilities(network, source, chosen)
            losses = -log_probabilities[np.arange(len(chosen)), source.labels[chosen]]
            correct = log_probabilities.argmax(axis=1) == source.labels[chosen]
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

    def _metrics(self, network: Any, source: WordRecordings) -> dict[str, float]:
        probabilities = np.exp(self._log_probabilities(network, source, list(range(len(source)))))
        correct = probabilities.argmax(axis=1) == source.labels
        per_word = [correct[source.labels == label].mean() for label in np.unique(source.labels)]
        return {
            "recordings": len(source),
            "accuracy": float(correct.mean()),
            "mean_accuracy_of_words": float(np.mean(per_word)),
            "calibration_error": expected_calibration_error(probabilities, source.labels),
        }

    @torch.inference_mode()
    def _log_probabilities(self, network: Any, source: WordRecordings, indices: list[int]) -> np.ndarray:
        """Return the log-probabilities of all words, float64 (B, words)."""
        size = self.config.training.batch_size
        parts = []
        for start in range(0, len(indices), size):
            waveforms, _ = source.batch(indices[start : start + size])
            parts.append(network(waveforms.to(self.device)).logits.double().log_softmax(dim=1).cpu())
        return torch.cat(parts).numpy()
