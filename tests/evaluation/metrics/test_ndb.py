"""Tests of the number of statistically different bins."""

import sys

import numpy as np
import pytest

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.metrics.ndb import jensen_shannon_divergence, ndb, proportions_differ


def clusters(*sizes: int, seed: int = 0) -> np.ndarray:
    """Return the features of well-separated clusters of these sizes."""
    cluster = np.repeat(np.arange(len(sizes)), sizes)
    return np.random.default_rng(seed).normal(size=(len(cluster), 2)) + 1000 * np.stack([cluster, cluster % 2], axis=1)


@pytest.fixture
def needs_scikit_learn() -> None:
    pytest.importorskip("sklearn", reason="needs scikit-learn (the extra eval)")


@pytest.mark.usefixtures("needs_scikit_learn")
def test_clusters_with_different_proportions():
    found = ndb(clusters(100, 100, 100, 100), clusters(0, 200, 100, 100, seed=1), bins=4)
    assert sorted(found.proportions_reference) == [0.25] * 4
    assert sorted(found.proportions) == [0, 0.25, 0.25, 0.5]
    assert (found.different, found.share) == (2, 0.5)
    # Divergence from the mean distribution (1/8, 3/8, 1/4, 1/4), in bits.
    first = 0.25 * np.log2(2) + 0.25 * np.log2(2 / 3)
    second = 0.5 * np.log2(4 / 3)
    assert found.divergence == pytest.approx((first + second) / 2, rel=1e-12)


@pytest.mark.usefixtures("needs_scikit_learn")
def test_the_reference_against_itself_and_its_half():
    reference = clusters(60, 60, 60)
    found = ndb(reference, reference[::-1], bins=20)
    assert (found.different, found.share, found.divergence) == (0, 0, 0)
    assert ndb(reference, reference[::2], bins=3).different == 0


@pytest.mark.usefixtures("needs_scikit_learn")
def test_sets_of_one_distribution_differ_in_about_alpha_of_the_bins():
    random = np.random.default_rng(0)
    shares = [ndb(random.normal(size=(400, 3)), random.normal(size=(400, 3)), bins=10).share for _ in range(40)]
    assert 0.01 < np.mean(shares) < 0.15


@pytest.mark.usefixtures("needs_scikit_learn")
def test_the_z_test_agrees_with_values_computed_by_hand():
    # z = (0.5 - 0.4) / √(0.45 · 0.55 · 2 / n): 1.4213 for n = 100, 2.0101 for n = 200; the limit at 0.05 is 1.9600
    assert not proportions_differ([0.5], 100, [0.4], 100).any()
    assert proportions_differ([0.5], 200, [0.4], 200).all()
    assert not proportions_differ([0.5], 200, [0.4], 200, alpha=0.04).any()
    # Pooled: z = 0.2 / √(7/15 · 8/15 · (1/100 + 1/20)) = 1.6366, p = 0.102; unpooled variances would give p = 0.079
    assert not proportions_differ([0.5], 100, [0.3], 20, alpha=0.09).any()
    assert proportions_differ([0.5], 100, [0.3], 20, alpha=0.11).all()
    assert proportions_differ([0.0], 100, [0.04], 100).all()  # z = 2.0203
    assert not proportions_differ([0.0, 1.0], 10, [0.0, 1.0], 20).any()  # both bins are empty, or both hold all clips


@pytest.mark.usefixtures("needs_scikit_learn")
def test_limits_of_the_divergence():
    apart = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert jensen_shannon_divergence(*apart) == 1
    assert jensen_shannon_divergence(apart[0], apart[0]) == 0


@pytest.mark.usefixtures("needs_scikit_learn")
def test_batches_of_histograms():
    from scipy.spatial.distance import jensenshannon

    random = np.random.default_rng(0)
    first, second = random.multinomial(60, np.full(5, 0.2), size=(2, 30)) / 60
    differ, divergence = proportions_differ(first, 60, second, 40), jensen_shannon_divergence(first, second)
    assert differ.shape == (30, 5)
    assert 0 < differ.sum() < differ.size
    for row, (a, b) in enumerate(zip(first, second, strict=True)):
        np.testing.assert_array_equal(differ[row], proportions_differ(a, 60, b, 40))
    np.testing.assert_allclose(divergence, jensenshannon(first, second, base=2, axis=1) ** 2, rtol=0, atol=1e-12)


def test_more_bins_than_clips_are_refused():
    with pytest.raises(UserError, match=r"number of reference clips \(3\), got 50"):
        ndb(clusters(3), clusters(60))


def test_without_scikit_learn_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(UserError, match="NDB needs scikit-learn: pip install scikit-learn"):
        ndb(clusters(60), clusters(60))
