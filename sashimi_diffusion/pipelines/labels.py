"""Class and speaker labels: indices or names, one for all waveforms or one for each, with defaults that alternate."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sashimi_diffusion.arguments import short_form
from sashimi_diffusion.errors import UserError
from sashimi_diffusion.suggestions import did_you_mean
from sashimi_diffusion.terminal import listed

_SHOWN_NAMES = 50  # in an error message

Labels = int | str | Sequence[int | str] | Tensor | np.ndarray
"""One label for all waveforms, or one for each: a name or an index. The index after the last one is the null label."""

PLURALS = {"class": "classes", "speaker": "speakers"}
"""Kind of label -> plural, as in ``num_classes`` and ``num_speakers`` of a model's config."""


@dataclass(frozen=True)
class KnownLabels:
    """The labels of one kind that a model was trained with.

    Args:
        kind: "class" or "speaker".
        count: number of labels.
        names: name of each label, in order; empty if the labels have no names.
    """

    kind: str
    count: int
    names: tuple[str, ...]

    def name(self, label: int) -> str | None:
        """Return the name of a label; None if the labels have no names."""
        return self.names[label] if self.names else None

    def title(self, label: int) -> str:
        """Return the name of a label, or its number if the labels have no names."""
        return self.names[label] if self.names else str(label)

    def index(self, text: str) -> int:
        """Return the label with the name ``text``, or else with the index ``text``.

        Raises:
            UserError: there is no such label; the message suggests the most similar name.
        """
        if text in self.names:
            return self.names.index(text)
        # Python does not convert thousands of digits to a number.
        if text.isdecimal() and len(text) < 20 and int(text) < self.count:
            return int(text)
        raise UserError(f"no {self.kind} {short_form(text)}{did_you_mean(text, self.names)} ({self.choices})")

    @property
    def choices(self) -> str:
        """The labels in words, for error messages: "this model has 0 to 2 or zero, one, two"."""
        names = listed(self.names, _SHOWN_NAMES)
        indices = f"0 to {self.count - 1}"
        own = self.names == tuple(map(str, range(self.count)))  # digits are their own indices
        return f"this model has {names if own else ' or '.join(filter(None, (indices, names)))}"

    def indices(self, given: Labels, batch_size: int) -> Tensor:
        """Return the label of each waveform, int64 (B,).

        Raises:
            UserError: an unknown name, an index out of range, something that is neither, or neither one label nor
                ``batch_size`` labels.
        """
        one = label_count(given) is None
        items = [given] if one else list(given)  # type: ignore[arg-type]
        numbers = [self._number(item.tolist() if hasattr(item, "tolist") else item) for item in items]
        if not one and len(numbers) != batch_size:
            raise UserError(
                f"{self.kind}_labels has {len(numbers)} labels for a batch of {batch_size}: expected one index or "
                "name, or one for each waveform"
            )
        return torch.tensor(numbers * (batch_size if one else 1), dtype=torch.int64)

    def _number(self, label: Any) -> int:
        """Return the index of a label given as an index or a name."""
        if isinstance(label, str):
            return self.index(label)
        if not isinstance(label, int) or isinstance(label, bool):
            raise UserError(
                f"{self.kind}_labels: expected one index or name, or one for each waveform, got {short_form(label)} "
                f"({self.choices})"
            )
        if not 0 <= label <= self.count:
            raise UserError(
                f"{self.kind}_labels must be from 0 to {self.count - 1} ({self.count} for none), got "
                f"{short_form(label)} ({self.choices})"
            )
        return label


def label_count(given: object) -> int | None:
    """Return how many labels were given; None if it is no sequence of labels but a single one, or nothing."""
    if isinstance(given, Tensor | np.ndarray):
        return len(given) if given.ndim else None
    return len(given) if isinstance(given, Sequence) and not isinstance(given, str | bytes) else None


def repeated(given: Any, each: int) -> Any:
    """Return labels with every label of a sequence ``each`` times in a row; a single label, or None, is unchanged."""
    if label_count(given) is None or each == 1:
        return given
    return [label for label in given for _ in range(each)]


def known_labels(config: Mapping[str, Any], kind: str) -> KnownLabels | None:
    """Return the "class" or "speaker" labels of the model with this ``config``; None if it has none of this kind."""
    count, names = config.get(f"num_{PLURALS[kind]}"), config.get(f"{kind}_names")
    return None if count is None else KnownLabels(kind, count, tuple(map(str, names or ())))


def label_conditioning(
    config: Mapping[str, Any], class_labels: Labels | None, speaker_labels: Labels | None, batch_size: int
) -> dict[str, Tensor]:
    """Return the label arguments of a model's ``forward``.

    If no speakers are given, they alternate within each class (:func:`speakers_in_turn`). If a model has classes and
    speakers, and no class is given, it gets no speaker either, because it was trained with both or with neither.

    Args:
        config: config of the model.
        class_labels: class of each waveform, or None.
        speaker_labels: speaker of each waveform, or None.
        batch_size: number of waveforms B.

    Returns:
        ``class_labels`` and ``speaker_labels``, int64 (B,); an entry that the model does not get is missing.

    Raises:
        UserError: the model has no labels of this kind, a speaker was given without a class, or an error of
            :meth:`KnownLabels.indices`.
    """
    classes, speakers = known_labels(config, "class"), known_labels(config, "speaker")
    if class_labels is not None and classes is None:
        raise UserError("class_labels were given, but this model is unconditional: leave them out")
    if speaker_labels is not None and speakers is None:
        raise UserError("speaker_labels were given, but this model has no speakers: leave them out")
    if classes is not None and class_labels is None:
        if speaker_labels is not None:
            raise UserError("speaker_labels were given without class_labels: this model needs both or neither")
        return {}
    labels = {}
    if classes is not None and class_labels is not None:
        labels["class_labels"] = classes.indices(class_labels, batch_size)
    if speakers is not None and speaker_labels is not None:
        labels["speaker_labels"] = speakers.indices(speaker_labels, batch_size)
    elif speakers is not None:
        own = labels["class_labels"].tolist() if classes is not None else [None] * batch_size
        labels["speaker_labels"] = torch.tensor(speakers_in_turn(own, range(speakers.count)))
    return labels


def null_labels(config: Mapping[str, Any], labels: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors like those of ``labels``, a result of :func:`label_conditioning`, with null labels only."""
    counts = {name: config[f"num_{PLURALS[name.removesuffix('_labels')]}"] for name in labels}
    return {name: torch.full_like(own, counts[name]) for name, own in labels.items()}


def labels_in_turn(
    config: Mapping[str, Any],
    count: int,
    classes: Sequence[int] | None = None,
    speakers: Sequence[int] | None = None,
) -> tuple[list[int] | None, list[int] | None]:
    """Return labels for ``count`` waveforms: classes alternate, and speakers alternate after each round of classes.

    So with c classes and s speakers, the first c · s waveforms contain every class by every speaker.

    Args:
        config: config of the model.
        count: number of waveforms.
        classes: the classes that alternate; None means all classes of the model.
        speakers: the speakers that alternate; None means all speakers of the model.

    Returns:
        The class and the speaker of each waveform; None if the model has no such labels.
    """
    known_classes, known_speakers = known_labels(config, "class"), known_labels(config, "speaker")
    if classes is None and known_classes is not None:
        classes = range(known_classes.count)
    if speakers is None and known_speakers is not None:
        speakers = range(known_speakers.count)
    labels = None if classes is None else [classes[index % len(classes)] for index in range(count)]
    return labels, None if speakers is None else speakers_in_turn(labels or [None] * count, speakers)


def speakers_in_turn(labels: Sequence[int | None], speakers: Sequence[int]) -> list[int]:
    """Return a speaker for each waveform: the n-th waveform of every class has the n-th speaker, modulo their number.

    Args:
        labels: class of each waveform.
        speakers: the speakers that alternate.
    """
    seen: Counter[int | None] = Counter()
    chosen = []
    for label in labels:
        chosen.append(speakers[seen[label] % len(speakers)])
        seen[label] += 1
    return chosen
