"""Labels as people give them: indices or names, one for all waveforms or one for each, or left to take turns."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sashimi_diffusion.errors import UserError
from sashimi_diffusion.suggestions import did_you_mean

Labels = int | str | Sequence[int | str] | Tensor
"""A label for all waveforms, or one for each; a name, an index, or the index after the last, which is "none"."""

PLURALS = {"class": "classes", "speaker": "speakers"}
"""The kinds of labels, and what several are called: ``num_classes`` and ``num_speakers`` in a model's config."""


@dataclass(frozen=True)
class KnownLabels:
    """What a model knows of one kind of labels.

    Args:
        kind: "class" or "speaker".
        count: how many there are.
        names: of all of them, in order; empty where they have none.
    """

    kind: str
    count: int
    names: tuple[str, ...]

    def name(self, label: int) -> str | None:
        """The name of a label; None where labels have no names."""
        return self.names[label] if self.names else None

    def title(self, label: int) -> str:
        """The name of a label, or else its number."""
        return self.names[label] if self.names else str(label)

    def index(self, text: str) -> int:
        """The label that a text means: looked up among the names first, and then taken as an index.

        Raises:
            UserError: neither; the nearest name is named.
        """
        if text in self.names:
            return self.names.index(text)
        if text.isdecimal() and int(text) < self.count:
            return int(text)
        hint = did_you_mean(text, self.names)
        known = f"0 to {self.count - 1}" + (f" or {', '.join(self.names)}" if self.names else "")
        raise UserError(f"no {self.kind} {text!r}{hint} (this model knows {known})")

    def indices(self, given: Labels, batch_size: int) -> Tensor:
        """The label of each waveform, (B,), int64.

        Raises:
            UserError: an unknown name, an index out of range, or not one label or ``batch_size`` of them.
        """
        expected = f"{self.kind}_labels: expected one index or name, or {batch_size} of them, got {given}"
        if isinstance(given, str):
            given = self.index(given)
        elif isinstance(given, list | tuple):
            given = [self.index(label) if isinstance(label, str) else label for label in given]
        try:
            labels = torch.as_tensor(given)
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(expected) from error
        if labels.ndim == 0:
            labels = labels.expand(batch_size)
        if labels.shape != (batch_size,) or labels.dtype not in (torch.int64, torch.int32):
            raise UserError(expected)
        if not 0 <= int(labels.min()) <= int(labels.max()) <= self.count:
            raise UserError(
                f"{self.kind}_labels must be from 0 to {self.count - 1} ({self.count} for none), got {given}"
            )
        return labels.long()


def known_labels(config: Mapping[str, Any], kind: str) -> KnownLabels | None:
    """What the model with this ``config`` knows of "class" or "speaker" labels; None: it is not told any."""
    count, names = config.get(f"num_{PLURALS[kind]}"), config.get(f"{kind}_names")
    return None if count is None else KnownLabels(kind, count, tuple(map(str, names or ())))


def chosen_labels(
    config: Mapping[str, Any], class_labels: Labels | None, speaker_labels: Labels | None, batch_size: int
) -> dict[str, Tensor]:
    """What a model is told of each waveform, by the arguments of its ``forward``; what it is not told is left out.

    Speakers that are not given take turns, class by class (:func:`speakers_in_turn`). But a model of both that is given
    no class is told no speaker either: it was trained with both or neither, and never with one of them.

    Returns:
        ``class_labels`` and ``speaker_labels``, (B,), int64, as far as the model is told them.

    Raises:
        UserError: labels that the model does not know, a speaker without the class, or as
            :meth:`KnownLabels.indices`.
    """
    classes, speakers = known_labels(config, "class"), known_labels(config, "speaker")
    if class_labels is not None and classes is None:
        raise UserError("class_labels were given, but this model is unconditional: leave them out")
    if speaker_labels is not None and speakers is None:
        raise UserError("speaker_labels were given, but this model knows no speakers: leave them out")
    no_class = classes is not None and class_labels is None
    if speaker_labels is not None and no_class:
        raise UserError("speaker_labels were given without class_labels: this model learnt them together, so give both")
    told = {}
    if class_labels is not None:
        told["class_labels"] = classes.indices(class_labels, batch_size)
    if speaker_labels is not None:
        told["speaker_labels"] = speakers.indices(speaker_labels, batch_size)
    elif speakers is not None and not no_class:
        labels = told["class_labels"].tolist() if classes is not None else [None] * batch_size
        told["speaker_labels"] = torch.tensor(speakers_in_turn(labels, range(speakers.count)))
    return told


def null_labels(config: Mapping[str, Any], told: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """No class and no speaker, in place of what :func:`chosen_labels` has ``told``."""
    counts = {name: known_labels(config, name.removesuffix("_labels")).count for name in told}
    return {name: torch.full_like(labels, counts[name]) for name, labels in told.items()}


def labels_in_turn(
    config: Mapping[str, Any],
    count: int,
    classes: Sequence[int] | None = None,
    speakers: Sequence[int] | None = None,
) -> tuple[list[int] | None, list[int] | None]:
    """Labels for ``count`` waveforms: classes take turns, and speakers after each round of them.

    So the first classes x speakers waveforms are every class by every speaker.

    Args:
        config: of the model.
        count: number of waveforms.
        classes, speakers: those that take turns; None: all that the model knows.

    Returns:
        The class and the speaker of each waveform; None where the model is not told.
    """
    known_classes, known_speakers = known_labels(config, "class"), known_labels(config, "speaker")
    if classes is None and known_classes is not None:
        classes = range(known_classes.count)
    if speakers is None and known_speakers is not None:
        speakers = range(known_speakers.count)
    labels = None if classes is None else [classes[index % len(classes)] for index in range(count)]
    return labels, None if speakers is None else speakers_in_turn(labels or [None] * count, speakers)


def speakers_in_turn(labels: Sequence[int | None], speakers: Sequence[int]) -> list[int]:
    """A speaker for each waveform: the n-th waveform of every class is by the n-th speaker, and so on in turn."""
    seen: Counter = Counter()
    chosen = []
    for label in labels:
        chosen.append(speakers[seen[label] % len(speakers)])
        seen[label] += 1
    return chosen
