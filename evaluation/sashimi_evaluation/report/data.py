"""The content of a report as plain data, independent of its computation and its presentation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from sashimi_evaluation.metrics.metric import Metric


@dataclass(frozen=True)
class Neighbor:
    """The training clip nearest to a sample.

    Attributes:
        title: name of the clip, for example a file name.
        waveform: real, shape (length,), in [-1, 1].
        sample_rate: sample rate in Hz.
        distance: distance to the sample in the feature space of the metrics.
    """

    title: str
    waveform: np.ndarray
    sample_rate: int
    distance: float


@dataclass(frozen=True)
class Clip:
    """One clip with a spectrogram and a player.

    Attributes:
        title: name of the clip, for example a file name.
        waveform: real, shape (length,), in [-1, 1]; other values are clamped, non-finite samples become zero.
        sample_rate: sample rate in Hz.
        predicted: predicted class, an index into ``ReportData.classes``, or None without classes.
        probability: probability of the predicted class, from 0 to 1, or None without classes.
        label: true or requested class, or None if unknown.
        neighbor: the nearest training clip, or None.
        log_likelihood: log-likelihood of the clip in nats under the model that generated it, or None.
    """

    title: str
    waveform: np.ndarray
    sample_rate: int
    predicted: int | None
    probability: float | None
    label: int | None = None
    neighbor: Neighbor | None = None
    log_likelihood: float | None = None

    @property
    def row(self) -> int | None:
        """Class of the table row that shows the clip: the label, or the predicted class if there is no label."""
        return self.predicted if self.label is None else self.label

    @property
    def misclassified(self) -> bool:
        """Whether the clip has a label and the prediction differs from it."""
        return self.label is not None and self.label != self.predicted


@dataclass(frozen=True)
class Method:
    """One folder of clips: the samples of a system, or real recordings for comparison.

    Attributes:
        name: displayed name, unique in the report.
        clips: the clips to show with players, a small part of the evaluated clips.
        metrics: the column of the metric table; may be empty.
        predictions: predicted classes of all evaluated clips, integers, shape (N,); empty without classes.
        labels: true or requested classes of all evaluated clips, integers, shape (N,), or None if unknown.
        log_likelihoods: log-likelihoods of all evaluated clips in nats, shape (N,), or None.
        is_reference: whether the clips are real recordings. They are shown first.
        count: number of the evaluated clips or excerpts in words; "" is the number of the predictions.
    """

    name: str
    clips: Sequence[Clip]
    metrics: Sequence[Metric]
    predictions: np.ndarray
    labels: np.ndarray | None = None
    log_likelihoods: np.ndarray | None = None
    is_reference: bool = False
    count: str = ""

    @property
    def counted(self) -> str:
        """Number of the evaluated clips or excerpts in words."""
        number = len(self.predictions)
        return self.count or f"{number:,} clip{'s' if number != 1 else ''}"

    def class_shares(self, classes: int) -> np.ndarray:
        """Return the share of the predictions in each class, float64, shape (classes,); zeros without predictions."""
        counts = np.bincount(self.predictions, minlength=classes) if len(self.predictions) else np.zeros(classes)
        return counts / max(1, counts.sum())

    def finite_log_likelihoods(self) -> np.ndarray:
        """Return the finite log-likelihoods, shape (n,); empty if there are none."""
        return np.empty(0) if self.log_likelihoods is None else self.log_likelihoods[np.isfinite(self.log_likelihoods)]


@dataclass(frozen=True)
class Classifier:
    """The classifier that the metrics are computed with.

    Attributes:
        name: its name.
        hash: hexadecimal digest of its weights.
        accuracy: accuracy on held-out real clips, from 0 to 1, or None if unknown.
        accuracy_note: the clips that the accuracy is computed on; may be empty.
    """

    name: str
    hash: str
    accuracy: float | None = None
    accuracy_note: str = ""


@dataclass(frozen=True)
class ReportData:
    """The content of a report.

    Attributes:
        title: heading of the page.
        classes: class names, in the order of the classifier; empty without one.
        methods: the compared folders, at least one.
        classifier: the classifier that the metrics are computed with, or None for clips without classes.
        command: the command line that produced the report.
        versions: program versions by program name.
        warnings: sentences shown at the top of the page.
        details: further entries of the header, for example seeds, as text by name.
    """

    title: str
    classes: Sequence[str]
    methods: Sequence[Method]
    classifier: Classifier | None
    command: str
    versions: Mapping[str, str]
    warnings: Sequence[str] = ()
    details: Mapping[str, str] = field(default_factory=dict)
