"""Recordings of spoken digits from several sources, and training examples as a function of (seed, number)."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sashimi_diffusion.data import AudioFolder, SpeechCommandsDigits
from sashimi_diffusion.data.recordings import Recordings
from sashimi_diffusion.data.speech_commands import DIGITS
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.training.examples import TRAINING, stream
from sashimi_diffusion.training.splits import combined_fingerprint, fingerprint
from sashimi_evaluation.classifiers.digit_classifier import one_second
from sashimi_evaluation.classifiers.training.augmentation import SAMPLE_RATE, augment
from sashimi_evaluation.classifiers.training.config import ClassifierConfig, SourceConfig, SourcesConfig
from sashimi_evaluation.clips import digit_index


class DigitRecordings:
    """The recordings and digits of one split of one source.

    Args:
        name: name of the source.
        recordings: recordings with classes that are named like "7" or "seven".

    Attributes:
        name: name of the source.
        digits: digit of each recording, int64 (recordings,).
        fingerprint: hash of the recordings, see :func:`sashimi_diffusion.training.splits.fingerprint`.

    Raises:
        UserError: a class is not a digit.
    """

    def __init__(self, name: str, recordings: Recordings) -> None:
        self.name, self._recordings = name, recordings
        digits = [digit_of(label, name) for label in recordings.class_names or ()]
        self._items = [item for item, (_, start) in enumerate(recordings.items) if start == 0]
        self.digits = np.array([digits[recordings.labels[item]] for item in self._items], dtype=np.int64)
        self.fingerprint = fingerprint(recordings)

    def __len__(self) -> int:
        return len(self._items)

    def waveform(self, index: int) -> np.ndarray:
        """Return a recording at 16 kHz, float32, shape (L,)."""
        return self._recordings.clip(self._items[index])

    def batch(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """Return recordings without augmentation, float32 (B, 1, 16000), and their digits, int64 (B,)."""
        waveforms = [one_second(self.waveform(index)[None], SAMPLE_RATE) for index in indices]
        return torch.from_numpy(np.stack(waveforms)), torch.from_numpy(self.digits[indices])


def digit_of(label: str, source: str) -> int:
    """Return the digit of a class that is named like "7" or "seven".

    Raises:
        UserError: the class is not a digit.
    """
    digit = digit_index(label)
    if digit < 0:
        raise UserError(
            f"data.sources.{source} has recordings labeled {label!r}: expected a digit, 0 to 9 or zero to nine; set "
            f"data.sources.{source}.pattern so that {{label}} is the digit, or exclude these recordings with "
            f"data.sources.{source}.where"
        )
    return digit


def open_sources(data: SourcesConfig, split: str, skip_bad_files: bool = False) -> list[DigitRecordings]:
    """Return the recordings of a split of all sources that have a path.

    Args:
        data: the sources.
        split: "train", "validation" or "final". "final" is the split that the setting ``test`` of each source
            names; the metrics at the end of the run use it.
        skip_bad_files: ignore files that cannot be used, with a warning.

    Raises:
        UserError: no source has a path, a source cannot be opened, or a class is not a digit.
    """
    used = {name: (source, source.path) for name, source in data.sources.items() if source.path is not None}
    if not used:
        keys = " or ".join(f"data.sources.{name}.path" for name in data.sources) or "data.sources.NAME.path"
        raise UserError(
            f"there are no recordings: set {keys} to a folder of recordings, for instance `recordings` of "
            "https://github.com/Jakobovski/free-spoken-digit-dataset or Speech Commands"
        )
    return [
        DigitRecordings(name, _open(source, path, source.test if split == "final" else split, skip_bad_files))
        for name, (source, path) in used.items()
    ]


def _open(source: SourceConfig, path: str, split: str, skip_bad_files: bool) -> Recordings:
    """Return the recordings of a split of one source, at 16 kHz."""
    common: dict[str, Any] = {"split": split, "cache_dir": source.cache_dir, "skip_bad_files": skip_bad_files}
    if source.kind == "speech_commands":
        return SpeechCommandsDigits(path, download=source.download, **common)
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
    """Augmented training examples in which all digits are equally frequent.

    Args:
        sources: the recordings.
        config: configuration of the run; its seed, balance and augmentation are used.

    Raises:
        UserError: no source has recordings of a digit.
    """

    def __init__(self, sources: list[DigitRecordings], config: ClassifierConfig) -> None:
        self._sources, self._seed, self._augmentation = sources, config.seed, config.augmentation
        self._recordings = [[np.flatnonzero(source.digits == digit) for source in sources] for digit in range(10)]
        counts = np.array([[len(indices) for indices in of_digit] for of_digit in self._recordings])  # (10, sources)
        missing = [word for word, total in zip(DIGITS, counts.sum(axis=1), strict=True) if total == 0]
        if missing:
            raise UserError(f"there is no training recording of {', '.join(missing)}: add a source with all ten digits")
        # See SourcesConfig.balance for the probabilities of the sources.
        weights = np.where(counts > 0, np.maximum(counts, 1) ** (1 - config.data.balance), 0)
        self._shares = weights / weights.sum(axis=1, keepdims=True)

    def examples(self, numbers: list[int]) -> tuple[Tensor, Tensor]:
        """Return the examples with these numbers (from 0) in the run: float32 (B, 1, 16000) and digits, int64 (B,)."""
        waveforms, digits = zip(*(self._example(number) for number in numbers), strict=True)
        return torch.from_numpy(np.stack(waveforms))[:, None], torch.tensor(digits)

    def _example(self, number: int) -> tuple[np.ndarray, int]:
        random = stream(TRAINING, self._seed, number)
        digit = int(random.integers(10))
        source = int(random.choice(len(self._sources), p=self._shares[digit]))
        index = int(random.choice(self._recordings[digit][source]))
        return augment(self._sources[source].waveform(index), self._augmentation, random), digit


def fingerprint_of(sources: list[DigitRecordings]) -> str:
    """Return a hash of the recordings of all sources; see :func:`sashimi_diffusion.training.splits.fingerprint`."""
    return combined_fingerprint((source.name, source.fingerprint) for source in sources)
