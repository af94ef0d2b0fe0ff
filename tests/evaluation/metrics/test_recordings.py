"""Tests of the intervals of excerpts: whole recordings are resampled, because excerpts of one recording are alike."""

from collections.abc import Callable

import numpy as np
import pytest

from sashimi_evaluation.metrics.frechet import frechet_metrics
from sashimi_evaluation.metrics.intervals import Interval, Resampling, bootstrap, wilson_interval
from sashimi_evaluation.metrics.kid import kernel_metrics
from sashimi_evaluation.metrics.memorization import memorization_metrics
from sashimi_evaluation.metrics.metric import Metric
from sashimi_evaluation.metrics.ndb import ndb_metrics
from sashimi_evaluation.metrics.precision_recall import precision_recall_metrics


def excerpts_of(recordings: int, each: int, seed: int, spread: float = 0.01) -> tuple[np.ndarray, np.ndarray]:
    """Return features of excerpts that differ little within a recording, (n, 2), and the recordings, (n,)."""
    random = np.random.default_rng(seed)
    centers = np.repeat(random.normal(size=(recordings, 2)), each, axis=0)
    return centers + spread * random.normal(size=centers.shape), np.repeat(np.arange(recordings), each)


def test_a_mean_over_excerpts_has_its_nominal_coverage_only_with_recordings():
    covered = np.zeros(2)
    for number in range(200):
        features, units = excerpts_of(20, 8, number)
        for index, own in enumerate((None, units)):
            interval = bootstrap(np.mean, features[:, 0], resamples=60, seed=number, level=0.9, units=[own])
            covered[index] += interval.low < 0 < interval.high
    rows, recordings = covered / 200
    assert rows < 0.6
    assert 0.8 < recordings < 0.95


def test_recordings_of_one_row_are_resampled_like_rows():
    values = np.random.default_rng(0).normal(size=40)
    assert bootstrap(np.mean, values, units=[np.arange(40)]) == bootstrap(np.mean, values)


def test_a_resample_has_all_excerpts_of_the_drawn_recordings():
    units = np.asarray([7, 7, 7, 2, 2, 9])
    sizes = {2: 2, 7: 3, 9: 1}

    def check(rows: np.ndarray) -> float:
        drawn = {unit: int((rows == unit).sum()) for unit in sizes}
        times = {unit: count / sizes[unit] for unit, count in drawn.items()}
        assert sum(times.values()) == 3
        assert all(number == int(number) for number in times.values())
        return 0.0

    assert bootstrap(check, units, units=[units]) == Interval(0, 0)


def test_a_share_has_as_many_trials_as_recordings():
    units = np.repeat(np.arange(10), 5)
    assert Resampling().proportion(0.24, 50) == wilson_interval(12, 50)
    found = Resampling(clips=units).proportion(0.24, 50)
    assert found == wilson_interval(2.4, 10)
    assert found.low < wilson_interval(12, 50).low


def test_masked_rows_leave_their_recordings_out():
    resampling = Resampling(clips=np.asarray([0, 0, 1, 2]), reference=np.asarray([3, 4]))
    masked = resampling.where(np.asarray([True, False, True, False]), np.asarray([False, True]))
    assert masked.clips.tolist() == [0, 1]
    assert masked.reference.tolist() == [4]
    assert Resampling().where(np.asarray([True])).both == (None, None)


def test_clipped_intervals_are_not_turned_around():
    assert Interval(-3, -2).clipped(-1, 1) == Interval(-1, -1)
    assert Interval(2, 3).clipped(-1, 1) == Interval(1, 1)
    assert Interval(-3, 0.5).clipped(-1, 1) == Interval(-1, 0.5)


DISTANCES: list[Callable[[np.ndarray, np.ndarray, Resampling], list[Metric]]] = [
    frechet_metrics,
    kernel_metrics,
    precision_recall_metrics,
    ndb_metrics,
]


@pytest.mark.parametrize("metrics", DISTANCES, ids=lambda metrics: metrics.__name__)
def test_excerpts_do_not_narrow_the_intervals_of_distances(metrics):
    """With eight excerpts of each of thirty recordings, intervals of rows are narrower than those of recordings."""
    if metrics is ndb_metrics:
        pytest.importorskip("sklearn", reason="needs scikit-learn (the extra eval)")
    (reference, of_reference), (features, of_clips) = excerpts_of(30, 8, 0, 0.3), excerpts_of(30, 8, 1, 0.3)
    of_rows = metrics(reference, features, Resampling(40))
    of_recordings = metrics(reference, features, Resampling(40, clips=of_clips, reference=of_reference))
    assert [metric.key for metric in of_rows] == [metric.key for metric in of_recordings]
    for rows, recordings in zip(of_rows, of_recordings, strict=True):
        assert rows.value == recordings.value, rows.key
        assert recordings.interval.low <= recordings.value <= recordings.interval.high, rows.key
        if rows.key != "ndb":  # a share of few bins
            assert width(recordings) > 1.3 * width(rows), rows.key


def width(metric: Metric) -> float:
    return metric.interval.high - metric.interval.low


def test_recordings_of_different_lengths_can_be_resampled():
    """A resample may lack the only long recording, and then has fewer rows than the extrapolation wants."""
    reference, of_reference = excerpts_of(20, 4, 0)
    random = np.random.default_rng(2)
    features, of_clips = random.normal(size=(62, 2)), np.asarray([0] * 60 + [1, 2])
    resampling = Resampling(40, clips=of_clips, reference=of_reference)
    metrics = [metric for each in DISTANCES[:3] for metric in each(reference, features, resampling)]
    assert "fid_infinity" in [metric.key for metric in metrics]
    assert all(np.isfinite([metric.interval.low, metric.interval.high]).all() for metric in metrics)


def test_copies_of_excerpts():
    units, held_out_units = np.repeat(np.arange(5), 4), np.repeat(np.arange(25), 4)
    distances, held_out = np.linspace(1, 2, 20), np.linspace(1, 2, 100)
    plain = memorization_metrics(distances, held_out, Resampling(50))
    clustered = memorization_metrics(distances, held_out, Resampling(50, clips=units, held_out=held_out_units))
    for rows, recordings in zip(plain, clustered, strict=True):
        assert rows.value == recordings.value
        assert width(recordings) > width(rows), rows.key
