"""Recordings of spoken words from several sources, and training examples as a function of (seed, number)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sashimi_diffusion.data import AudioFolder, SpeechCommands
from sashimi_diffusion.data.recordings import Recordings
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.terminal import listed
from sashimi_diffusion.training.examples import TRAINING, stream
from sashimi_diffusion.training.splits import combined_fingerprint, fingerprint
from sashimi_evaluation.classifiers.training.augmentation import SAMPLE_RATE, augment
from sashimi_evaluation.classifiers.training.config import ClassifierConfig, SourceConfig, SourcesConfig
from sashimi_evaluation.classifiers.word_classifier import one_second
from sashimi_evaluation.clips import class_index


class WordRecordings:
    """The recordings and classes of one split of one source.

    Args:
        name: name of the source.
        recordings: recordings with classes that are named like the words; "7" is "seven".
        words: the words of the classifier.

    Attributes:
        name: name of the source.
        labels: index of the word of each recording, int64 (recordings,).
        fingerprint: hash of the recordings, see :func:`sashimi_diffusion.training.splits.fingerprint`.

    Raises:
        UserError: a class is not one of the words.
    """

    def __init__(self, name: str, recordings: Recordings, words: Sequence[str]) -> None:
        self.name, self._recordings = name, recordings
        indices = [index_of(label, words, name) for label in recordings.class_names or ()]
        self._items = [item for item, (_, start) in enumerate(recordings.items) if start == 0]
        self.labels = np.array([indices[recordings.labels[item]] for item in self._items], dtype=np.int64)
        self.fingerprint = fingerprint(recordings)

    def __len__(self) -> int:
        return len(self._items)

    def waveform(self, index: int) -> np.ndarray:
        """Return a recording at 16 kHz, float32, shape (L,)."""
        return self._recordings.clip(self._items[index])

    def batch(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Return recordings without augmentation, float32 (B, 1, 16000), and their labels, int64 (B,)."""
        waveforms = [one_second(self.waveform(index)[None], SAMPLE_RATE) for index in indices]
        return torch.from_numpy(np.stack(waveforms)), torch.from_numpy(self.labels[indices])


def index_of(label: str, words: Sequence[str], source: str) -> int:
    """Return the index of the word that is the name of a class; "7" is "seven".

    Raises:
        UserError: the class is not one of the words.
    """
    index = class_index(label, words)
    if index < 0:
        raise UserError(
            f"data.sources.{source} has recordings labeled {label!r}: expected one of the words {listed(words, 12)}; "
            f"set data.sources.{source}.pattern so that {{label}} is the word, exclude these recordings with "
            f"data.sources.{source}.where, or add the word to data.words"
        )
    return index


def open_sources(data: SourcesConfig, split: str, skip_bad_files: bool = False) -> list[WordRecordings]:
    """Return the recordings of a split of all sources that have a path.

    Args:
        data: the sources.
        split: "train", "validation" or "final". "final" is the split that the setting ``test`` of each source
            names; the metrics at the end of the run use it.
        skip_bad_files: ignore files that cannot be used, with a warning.

    Raises:
        UserError: no source has a path, a source cannot be opened, or a class is not one of the words.
    """
    used = {name: (source, source.path) for name, source in data.sources.items() if source.path is not None}
    if not used:
        keys = " or ".join(f"data.sources.{name}.path" for name in data.sources) or "data.sources.NAME.path"
        raise UserError(
            f"there are no recordings: set {keys} to a folder of recordings, for instance `recordings` of "
            "https://github.com/Jakobovski/free-spoken-digit-dataset or Speech Commands"
        )
    return [
        WordRecordings(
            name,
            _open(source, path, data.class_names, source.test if split == "final" else split, skip_bad_files),
            data.class_names,
        )
        for name, (source, path) in used.items()
    ]


def _open(source: SourceConfig, path: str, words: list[str], split: str, skip_bad_files: bool) -> Recordings:
    """Return the recordings of a split of one source, at 16 kHz."""
    common: dict[str, Any] = {"split": split, "cache_dir": source.cache_dir, "skip_bad_files": skip_bad_files}
    if source.kind == "speech_commands":
        paths = [path, *source.more_paths] if source.more_paths else path
        return SpeechCommands(paths, download=source.download, words=source.words or words, **common)
    return AudioFolder(
        path,
        sample_rate=SAMPLE_RATE,
        pattern=source.pattern,
        labels="folder" if source.pattern is None else "label",
        where=source.where,
        holdout=source.holdout,
        splits=tuple(source.splits),
        **common,
    )


class BalancedBatches:
    """Augmented training examples in which all words are equally frequent.

    Args:
        sources: the recordings.
        config: configuration of the run; its seed, balance and augmentation are used.

    Raises:
        UserError: no source has recordings of a word.
    """

    def __init__(self, sources: list[WordRecordings], config: ClassifierConfig) -> None:
        self._sources, self._seed, self._augmentation = sources, config.seed, config.augmentation
        words = config.data.class_names
        self._recordings = [
            [np.flatnonzero(source.labels == label) for source in sources] for label in range(len(words))
        ]
        counts = np.array([[len(indices) for indices in own] for own in self._recordings])  # (words, sources)
        missing = [word for word, total in zip(words, counts.sum(axis=1), strict=True) if total == 0]
        if missing:
            raise UserError(
                f"there is no training recording of {', '.join(missing)}: add a source with all words, or set "
                "data.words"
            )
        # See SourcesConfig.balance for the probabilities of the sources.
        weights = np.where(counts > 0, np.maximum(counts, 1) ** (1 - config.data.balance), 0)
        self._shares = weights / weights.sum(axis=1, keepdims=True)

    def examples(self, numbers: list[int]) -> tuple[Tensor, Tensor]:
        """Return the examples with these numbers (from 0) in the run: float32 (B, 1, 16000) and labels, int64 (B,)."""
        waveforms, labels = zip(*(self._example(number) for number in numbers), strict=True)
        return torch.from_numpy(np.stack(waveforms))[:, None], torch.tensor(labels)

    def _example(self, number: int) -> tuple[np.ndarray, int]:
        random = stream(TRAINING, self._seed, number)
        label = int(random.integers(len(self._recordings)))
        source = int(random.choice(len(self._sources), p=self._shares[label]))
        index = int(random.choice(self._recordings[label][source]))
        return augment(self._sources[source].waveform(index), self._augmentation, random), label


def fingerprint_of(sources: list[WordRecordings]) -> str:
    """Return a hash of the recordings of all sources; see :func:`sashimi_diffusion.training.splits.fingerprint`."""
    return combined_fingerprint((source.name, source.fingerprint) for source in sources)
