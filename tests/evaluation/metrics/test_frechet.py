"""Tests of the Fréchet distance against its closed form for known covariances."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.metrics.frechet import FrechetExtrapolation, frechet_distance, frechet_extrapolation


def with_moments(mean, covariance, clips: int, seed: int = 0) -> np.ndarray:
    """Return features with exactly this mean and covariance (divided by n - 1)."""
    mean, covariance = np.asarray(mean, dtype=float), np.asarray(covariance, dtype=float)
    noise = np.random.default_rng(seed).normal(size=(clips, len(mean)))
    white, _ = np.linalg.qr(noise - noise.mean(axis=0))
    values, vectors = np.linalg.eigh(covariance)
    return np.sqrt(clips - 1) * white @ (vectors * np.sqrt(values)).T + mean


def rotation(width: int, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]


def test_diagonal_covariances():
    a = with_moments([0, 1, 2], np.diag([1.0, 4.0, 9.0]), clips=20)
    b = with_moments([1, 1, 0], np.diag([4.0, 1.0, 0.25]), clips=35, seed=1)
    # squared distance of the means plus squared differences of the standard deviations
    assert frechet_distance(a, b) == pytest.approx((1 + 4) + (1 + 1 + 2.5**2), rel=1e-12)


def test_covariances_that_do_not_commute():
    first, second = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([[1.0, -0.8], [-0.8, 3.0]])
    a, b = with_moments([0, 0], first, clips=11), with_moments([3, 4], second, clips=12)
    product = first @ second  # for two positive eigenvalues, (√x + √y)² = x + y + 2 √(xy)
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    assert frechet_distance(a, b) == pytest.approx(25 + 3 + 4 - 2 * root, rel=1e-12)
    assert frechet_distance(b, a) == pytest.approx(frechet_distance(a, b), rel=1e-12)


@pytest.mark.parametrize("clips", [5, 200])
def test_more_columns_than_clips(clips: int):
    """Zero columns and a rotation do not change the distance, although the covariances become singular."""
    random = np.random.default_rng(3)
    a, b = random.normal(size=(clips, 3)), random.normal(size=(clips + 2, 3)) * 2 + 1
    turn = rotation(40)
    wide_a, wide_b = (np.pad(each, ((0, 0), (0, 37))) @ turn for each in (a, b))
    assert frechet_distance(wide_a, wide_b) == pytest.approx(frechet_distance(a, b), rel=1e-12)


def test_the_variances_of_sets_in_orthogonal_spaces_add_up():
    a = with_moments([0], [[2.0]], clips=6) * [[1.0, 0.0]]
    b = with_moments([0], [[3.0]], clips=6) * [[0.0, 1.0]]
    assert frechet_distance(a, b) == pytest.approx(5, rel=1e-12)


@given(st.integers(0, 10_000), st.integers(2, 12), st.integers(1, 8))
def test_a_set_against_itself_shuffled(seed: int, clips: int, width: int):
    random = np.random.default_rng(seed)
    features = random.normal(size=(clips, width))
    assert frechet_distance(features, random.permutation(features)) == pytest.approx(0, abs=1e-11)


def test_the_extrapolation_removes_the_bias():
    random = np.random.default_rng(0)
    reference, features = random.normal(size=(20_000, 4)), random.normal(size=(500, 4))
    features[:, 0] += 1  # the true distance is 1
    found = frechet_extrapolation(reference, features)
    assert found.sizes == (100, 113, 130, 152, 184, 233, 318, 500)
    assert found.values[-1] == pytest.approx(frechet_distance(reference, features))
    # The line cannot remove the noise in the mean of these 500 clips, because all subsets share it.
    gap = features.mean(axis=0) - reference.mean(axis=0)
    assert abs(found.limit - gap @ gap) < 0.03 < found.values[0] - gap @ gap
    assert found == frechet_extrapolation(reference, features, seed=0)
    assert found != frechet_extrapolation(reference, features, seed=1)


def test_the_line_through_two_sizes():
    random = np.random.default_rng(0)
    reference, features = random.normal(size=(50, 2)), random.normal(size=(40, 2))
    found = frechet_extrapolation(reference, features, sizes=[40, 20, 20])
    assert isinstance(found, FrechetExtrapolation)
    assert found.sizes == (20, 40)
    assert found.limit == pytest.approx(2 * found.values[1] - found.values[0], rel=1e-9)


@pytest.mark.parametrize("sizes", [[], [10], [10, 10], [1, 10], [10, 41]])
def test_sizes_that_do_not_determine_a_line_are_refused(sizes: list[int]):
    features = np.random.default_rng(0).normal(size=(40, 2))
    with pytest.raises(UserError, match=r"between 2 and the number of clips \(40\)"):
        frechet_extrapolation(features, features, sizes=sizes)


def test_one_clip_has_no_covariance():
    many = np.random.default_rng(0).normal(size=(5, 2))
    for a, b in [(many, many[:1]), (many[:1], many)]:
        with pytest.raises(UserError, match="at least 2 clips, got 1"):
            frechet_distance(a, b)
