"""What a report shows, as plain data: the page is written from these and knows nothing of how they were computed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Metric:
    """One figure of one method.

    Attributes:
        name: as the table shows it. Metrics of the same name stand in one row, in the order of their first appearance.
        value: the figure; NaN where it could not be computed, and ``note`` should then say why.
        low: lower end of its 95 % interval, or None where there is none.
        high: upper end of its 95 % interval, or None where there is none.
        better: whether lower or higher values are better; None for figures that only describe.
        note: what the reader has to know beside the figure, such as too few samples; may be empty.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    better: Literal["lower", "higher"] | None = None
    note: str = ""


@dataclass(frozen=True)
class Neighbour:
    """The training clip that is nearest to a sample.

    Attributes:
        title: its name, such as a file name.
        waveform: real, shape (length,), in [-1, 1].
        sample_rate: in Hz.
        distance: from the sample, in the feature space that the report's metrics use.
    """

    title: str
    waveform: np.ndarray
    sample_rate: int
    distance: float


@dataclass(frozen=True)
class Clip:
    """One clip that can be looked at and listened to.

    Attributes:
        title: its name, such as a file name.
        waveform: real, shape (length,), in [-1, 1]; what lies outside is clamped, non-finite samples become zero.
        sample_rate: in Hz.
        predicted: class that the classifier hears, an index into ``ReportData.classes``.
        probability: of that class, from 0 to 1.
        label: true or asked-for class, or None where it is not known.
        neighbour: the nearest training clip, or None where it was not looked for.
        log_likelihood: natural logarithm of the clip's probability under the model that generated it, or None.
    """

    title: str
    waveform: np.ndarray
    sample_rate: int
    predicted: int
    probability: float
    label: int | None = None
    neighbour: Neighbour | None = None
    log_likelihood: float | None = None


@dataclass(frozen=True)
class Method:
    """One folder of clips: a system's samples, or real recordings to compare with.

    Attributes:
        name: as it is shown; no two methods of a report have the same.
        clips: those that are shown; usually a few of each class, far fewer than were scored.
        metrics: its column of the metric table; empty for clips that are only there to be heard.
        predictions: classes of all clips that were scored, whole numbers, shape (N,).
        labels: their true or asked-for classes, shape (N,), or None where they are not known.
        log_likelihoods: of all clips that were scored, in nats, shape (N,), or None.
        is_reference: real recordings; they are shown first.
    """

    name: str
    clips: Sequence[Clip]
    metrics: Sequence[Metric]
    predictions: np.ndarray
    labels: np.ndarray | None = None
    log_likelihoods: np.ndarray | None = None
    is_reference: bool = False


@dataclass(frozen=True)
class Classifier:
    """The classifier behind the figures.

    Attributes:
        name: what it is called.
        hash: hexadecimal digest of its weights.
        accuracy: on held-out real clips, from 0 to 1, or None where it was not measured.
        accuracy_note: which clips those were; may be empty.
    """

    name: str
    hash: str
    accuracy: float | None = None
    accuracy_note: str = ""


@dataclass(frozen=True)
class ReportData:
    """Everything on the page.

    Attributes:
        title: heading of the page.
        classes: names of the classes, in the classifier's order.
        methods: what is compared, at least one.
        classifier: the classifier behind the figures.
        command: the command line that made the report.
        versions: names of programs and their versions.
        warnings: sentences that stand at the top of the page.
        details: further facts of the run for its header, such as seeds and the reference folder, as name and text.
    """

    title: str
    classes: Sequence[str]
    methods: Sequence[Method]
    classifier: Classifier
    command: str
    versions: Mapping[str, str]
    warnings: Sequence[str] = ()
    details: Mapping[str, str] = field(default_factory=dict)
