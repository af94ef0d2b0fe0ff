"""The figures of one set of clips: each a number with its interval, and beside it what it must not be read for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.metrics.frechet import frechet_distance, frechet_extrapolation
from sashimi_evaluation.metrics.inception import am_score, inception_score, modified_classifier_score
from sashimi_evaluation.metrics.intervals import Interval, bootstrap, interval_about
from sashimi_evaluation.metrics.kid import kernel_distance_with_interval
from sashimi_evaluation.metrics.label_accuracy import label_accuracy, wilson_interval
from sashimi_evaluation.metrics.metric import Metric as Figure
from sashimi_evaluation.metrics.ndb import BinComparison, jensen_shannon_divergence, ndb, proportions_differ
from sashimi_evaluation.metrics.precision_recall import (
    memorization_of_distances,
    precision_recall_density_coverage_per_item,
)
from sashimi_evaluation.metrics.signal import SILENT_DB

FEW = 1000
"""Below so many clips the scores that estimate a distribution are marked; the papers use 2,048 and more."""


@dataclass(frozen=True)
class Resampling:
    """How intervals are made: ``resamples`` draws from generators seeded with ``seed``."""

    resamples: int = 200
    seed: int = 0

    def interval(
        self, statistic: Callable[..., float], *arrays: np.ndarray, least: float = -np.inf, most: float = np.inf
    ) -> Interval:
        """See :func:`.intervals.bootstrap`; the ends are kept between ``least`` and ``most``."""
        return _within(bootstrap(statistic, *arrays, resamples=self.resamples, seed=self.seed), least, most)


def distance_figures(reference: np.ndarray, features: np.ndarray, resampling: Resampling) -> list[Figure]:
    """FID with its limit, KID, KAD, precision, recall, density, coverage and NDB.

    Args:
        reference: features of the real clips, (n, d).
        features: of the clips to score, (m, d).
        resampling: of the intervals.
    """
    fewest, width = min(len(reference), len(features)), features.shape[1]
    if fewest < 2:
        return [Figure("fid", "FID", None, better="lower", note="needs at least two clips on either side")]
    return [
        *_frechet_figures(reference, features, resampling, _frechet_note(fewest, width)),
        _kernel_figure("kid", "KID", "polynomial", reference, features, resampling),
        _kernel_figure("kad", "KAD", "rbf", reference, features, resampling),
        *_manifold_figures(reference, features, resampling),
        *_bin_figures(reference, features, resampling),
    ]


def _frechet_note(fewest: int, width: int) -> str:
    if fewest <= width:
        return f"unreliable: {fewest} clips for {width} feature dimensions"
    return f"biased upwards at N = {fewest}" if fewest < FEW else ""


def _frechet_figures(reference: np.ndarray, features: np.ndarray, resampling: Resampling, note: str) -> list[Figure]:
    interval = resampling.interval(frechet_distance, reference, features, least=0)
    figures = [Figure("fid", "FID", frechet_distance(reference, features), interval, "lower", note)]
    sizes = _extrapolation_sizes(*features.shape)
    if sizes:
        line = frechet_extrapolation(reference, features, sizes, seed=resampling.seed)
        values = ", ".join(f"{value:.3f} at {size}" for size, value in zip(line.sizes, line.values, strict=True))
        interval = _limit_interval(reference, features, sizes, line.limit, resampling)
        figures.append(Figure("fid_infinity", "FID extrapolated to N = ∞", line.limit, interval, "lower", values))
    return figures


def _limit_interval(
    reference: np.ndarray, features: np.ndarray, sizes: list[int], limit: float, resampling: Resampling
) -> Interval:
    """Of the line through the ends of ``sizes`` only, about the ``limit`` of all: affordable, and rather too wide."""

    def end_to_end(reference: np.ndarray, features: np.ndarray) -> float:
        return frechet_extrapolation(reference, features, [sizes[0], sizes[-1]], resampling.seed, draws=1).limit

    interval, moved = resampling.interval(end_to_end, reference, features), limit - end_to_end(reference, features)
    return Interval(interval.low + moved, interval.high + moved)


def _extrapolation_sizes(clips: int, width: int) -> list[int]:
    """Eight numbers of clips, evenly spaced in 1 / N; empty where N cannot grow while it is above the feature width."""
    smallest = max(clips // 5, width + 1)
    if smallest > 0.75 * clips:
        return []
    return [round(1 / inverse) for inverse in np.linspace(1 / smallest, 1 / clips, 8)]


def _kernel_figure(
    key: str, title: str, kernel: str, reference: np.ndarray, features: np.ndarray, resampling: Resampling
) -> Figure:
    draws = {"resamples": resampling.resamples, "seed": resampling.seed}
    value, interval = kernel_distance_with_interval(reference, features, kernel, **draws)
    return Figure(key, title, value, interval, "lower", "unbiased: can be below zero")


def _manifold_figures(reference: np.ndarray, features: np.ndarray, resampling: Resampling) -> list[Figure]:
    neighbours = 5
    names = ("precision", "recall", "density", "coverage")
    if min(len(reference), len(features)) <= neighbours:
        note = f"needs more than {neighbours} clips on either side"
        return [Figure(name, name.capitalize(), None, better="higher", note=note) for name in names]
    parts = precision_recall_density_coverage_per_item(reference, features, k=neighbours)
    return [
        Figure(
            name,
            name.capitalize(),
            float(part.mean()),
            resampling.interval(np.mean, part, least=0, most=np.inf if name == "density" else 1),
            "higher",
        )
        for name, part in zip(names, parts, strict=True)
    ]


def _bin_figures(reference: np.ndarray, features: np.ndarray, resampling: Resampling) -> list[Figure]:
    bins = 50
    if min(len(reference), len(features)) < bins:
        return [Figure("ndb", "NDB/K", None, better="lower", note=f"needs at least {bins} clips on either side")]
    try:
        result = ndb(reference, features, bins=bins, seed=resampling.seed)
    except UserError as error:  # the extra is not installed
        return [Figure("ndb", "NDB/K", None, better="lower", note=str(error))]
    intervals = _bin_intervals(result, len(reference), len(features), resampling)
    note = f"{bins} bins; about 0.05 of them differ between two sets of the same kind"
    return [
        Figure("ndb", "NDB/K", result.share, intervals[0], "lower", note),
        Figure("jsd", "Jensen-Shannon divergence of the bins (bits)", result.divergence, intervals[1], "lower"),
    ]


def _bin_intervals(
    result: BinComparison, reference: int, clips: int, resampling: Resampling
) -> tuple[Interval, Interval]:
    """Of the share of bins that differ and of the divergence: the clips drawn again, the bins as they are."""
    random = np.random.default_rng(resampling.seed)
    first = random.multinomial(reference, result.proportions_reference, size=resampling.resamples) / reference
    second = random.multinomial(clips, result.proportions, size=resampling.resamples) / clips
    shares = [proportions_differ(a, reference, b, clips).mean() for a, b in zip(first, second, strict=True)]
    divergences = [jensen_shannon_divergence(a, b) for a, b in zip(first, second, strict=True)]
    return (
        _within(interval_about(result.share, np.asarray(shares)), 0, 1),
        _within(interval_about(result.divergence, np.asarray(divergences)), 0, 1),
    )


def _within(interval: Interval, least: float, most: float) -> Interval:
    return Interval(max(least, interval.low), min(most, interval.high))


def classifier_figures(reference: np.ndarray, probabilities: np.ndarray, resampling: Resampling) -> list[Figure]:
    """IS, mCS and AM of class probabilities (m, classes), the last against those of the real clips (n, classes)."""
    count = len(probabilities)
    note = f"{count} clips are few: the papers score 2,048 and more" if count < FEW else ""
    figures = [
        Figure(
            "is",
            "Inception score",
            inception_score(probabilities, splits=1)[0],
            resampling.interval(lambda rows: inception_score(rows, splits=1)[0], probabilities, least=1),
            "higher",
            note,
        )
    ]
    splits = 10
    if count >= splits * probabilities.shape[1]:
        mean, deviation = inception_score(probabilities, splits=splits, seed=resampling.seed)
        half = Interval(mean - deviation, mean + deviation)
        title = f"Inception score, {splits} splits"
        figures.append(Figure("is_splits", title, mean, half, "higher", "interval: ± one deviation of the splits"))
    return [
        *figures,
        Figure(
            "mcs",
            "mCS (mIS)",
            modified_classifier_score(probabilities),
            resampling.interval(modified_classifier_score, probabilities, least=1),
            "higher",
            note,
        ),
        Figure(
            "am",
            "AM",
            am_score(reference, probabilities),
            resampling.interval(am_score, reference, probabilities, least=0),
            "lower",
            note,
        ),
    ]


def label_figures(probabilities: np.ndarray, labels: np.ndarray, resampling: Resampling) -> list[Figure]:
    """How often the classifier hears the digit that a clip is meant to say, and how sure it is of that digit."""
    result = label_accuracy(probabilities, labels)
    right = probabilities[np.arange(len(labels)), labels]
    correct = int((probabilities.argmax(axis=1) == labels).sum())
    return [
        Figure("accuracy", "Label accuracy", result.accuracy, wilson_interval(correct, len(labels)), "higher"),
        Figure(
            "confidence",
            "Mean probability of the label",
            result.mean_probability,
            resampling.interval(np.mean, right, least=0, most=1),
            "higher",
        ),
    ]


def memorization_figures(distances: np.ndarray, usual: np.ndarray | None, resampling: Resampling) -> list[Figure]:
    """Whether the clips lie nearer to the reference than recordings do that are not part of it.

    Args:
        distances: of the clips to their nearest reference clips, (n,).
        usual: of held-out recordings to theirs, (m,), or None: no figures.
        resampling: of the intervals.
    """
    if usual is None:
        return []
    result, count = memorization_of_distances(distances, usual), len(distances)
    return [
        Figure(
            "copies",
            "Copies",
            result.share_below_first,
            wilson_interval(round(result.share_below_first * count), count),
            "lower",
            "share nearer to a reference clip than 99 % of held-out clips are: 0.01 where nothing is memorized",
        ),
        Figure(
            "neighbour_ratio",
            "Neighbour distance ratio",
            result.median_ratio,
            resampling.interval(lambda near, far: float(np.median(near) / np.median(far)), distances, usual, least=0),
            note="median distance to the nearest reference clip, over that of held-out clips: far below 1 are copies",
        ),
    ]


def signal_figures(facts: dict[str, np.ndarray], resampling: Resampling) -> list[Figure]:
    """Silence, clipping, level and noise floors."""
    silent = facts["loudest"] < SILENT_DB
    return [
        Figure(
            "silent", "Silent clips", float(silent.mean()), wilson_interval(int(silent.sum()), len(silent)), "lower"
        ),
        Figure(
            "clipped",
            "Clips that reach full scale",
            float((facts["clipped"] > 0).mean()),
            wilson_interval(int((facts["clipped"] > 0).sum()), len(silent)),
            "lower",
        ),
        _mean("level", "Level (dB)", facts["level"], resampling),
        _mean("noise_floor", "Noise floor (dB)", facts["noise_floor"], resampling),
        _mean("inner_floor", "Noise floor between first and last sound (dB)", facts["inner_floor"], resampling),
    ]


def likelihood_figures(bits: np.ndarray, resampling: Resampling) -> list[Figure]:
    """Bits per sample of clips under the model that made them, where all are known."""
    if not np.isfinite(bits).all():
        return []
    return [_mean("bits_per_sample", "Bits per sample under its own model", bits, resampling)]


def _mean(key: str, title: str, values: Sequence[float], resampling: Resampling) -> Figure:
    return Figure(key, title, float(np.mean(values)), resampling.interval(np.mean, np.asarray(values)))
