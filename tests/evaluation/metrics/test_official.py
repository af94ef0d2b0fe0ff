"""Tests of the official metrics against numbers of the official code, and of their differences from the exact ones."""

import numpy as np
import pytest

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.metrics import official
from sashimi_evaluation.metrics.frechet import frechet_distance
from sashimi_evaluation.metrics.inception import am_score, inception_score, modified_classifier_score
from sashimi_evaluation.metrics.ndb import proportions_differ
from sashimi_evaluation.metrics.official import (
    official_frechet_distance,
    official_inception_score,
    official_modified_inception_score,
    official_ndb,
    official_threshold_search,
    state_after_modified_inception_score,
)


@pytest.fixture(scope="module")
def arrays(golden) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in golden.tensors("f_metrics/metrics").items()}


@pytest.fixture(scope="module")
def outputs(golden) -> dict:
    return golden.info("f_metrics/metrics")["outputs"]


def test_inception_score(arrays, outputs):
    probs = arrays["in.probs_gen"]
    assert official_inception_score(probs) == pytest.approx(outputs["inception_score"], rel=1e-6)
    score, _ = inception_score(probs, splits=1)
    assert score == pytest.approx(outputs["inception_score_textbook_full"], rel=1e-6)


def test_modified_inception_score(arrays, outputs):
    probs = arrays["in.probs_gen"]
    assert official_modified_inception_score(probs) == pytest.approx(
        outputs["modified_inception_score_n10000"], rel=1e-6
    )
    assert official_modified_inception_score(probs, 500) == pytest.approx(
        outputs["modified_inception_score_n500"], rel=1e-6
    )


def test_the_random_pairs_estimate_the_exact_score(arrays):
    probs = arrays["in.probs_gen"]
    logs = [np.log(official_modified_inception_score(probs, seed=seed)) for seed in range(30)]
    assert np.mean(logs) == pytest.approx(np.log(modified_classifier_score(probs)), abs=4 * np.std(logs) / np.sqrt(30))


def test_am_score(arrays, outputs):
    assert am_score(arrays["in.probs_data"], arrays["in.probs_gen"]) == pytest.approx(outputs["am_score"], rel=1e-6)


def test_frechet_distance(arrays, outputs):
    data, generated = arrays["in.feat_data"], arrays["in.feat_gen"]
    assert frechet_distance(data, generated) == pytest.approx(outputs["fid"], rel=1e-6)
    assert frechet_distance(data, data) == pytest.approx(outputs["fid_same"], abs=1e-6)


def test_frechet_distance_of_fewer_clips_than_features(arrays, outputs):
    """The values differ by 9e-7, the error of the official square root of a singular matrix."""
    data, generated = arrays["in.feat_data_lowrank"], arrays["in.feat_gen_lowrank"]
    assert frechet_distance(data, generated) == pytest.approx(outputs["fid_lowrank"], rel=1e-6)


def test_official_frechet_distance(arrays, outputs):
    pytest.importorskip("scipy", reason="needs SciPy (the extra eval)")
    full = official_frechet_distance(arrays["in.feat_data"], arrays["in.feat_gen"])
    assert full == pytest.approx(outputs["fid"], rel=1e-6)
    singular = official_frechet_distance(arrays["in.feat_data_lowrank"], arrays["in.feat_gen_lowrank"])
    assert singular == pytest.approx(outputs["fid_lowrank"], rel=1e-6)


def test_a_root_that_is_not_finite_is_recomputed_with_an_offset_on_the_diagonal(monkeypatch):
    matrices = []

    def root(matrix: np.ndarray) -> np.ndarray:
        matrices.append(matrix)
        return np.full_like(matrix, np.nan) if len(matrices) == 1 else np.eye(2) * 1j + 0.25

    monkeypatch.setattr(official, "_matrix_root", root)
    a, b = np.array([[0.0, 0.0], [2.0, 0.0]]), np.array([[1.0, 0.0], [1.0, 4.0]])  # variances (2, 0) and (0, 8)
    assert official_frechet_distance(a, b) == pytest.approx(4 + 2 + 8 - 2 * 0.5)
    np.testing.assert_allclose(matrices[0], np.zeros((2, 2)))
    np.testing.assert_allclose(matrices[1], np.diag([2.0001e-4, 8.0001e-4]), rtol=1e-12)


def test_ndb(arrays, outputs):
    pytest.importorskip("sklearn", reason="needs scikit-learn (the extra eval)")
    data = arrays["in.feat_data"]
    assert official_ndb(data, arrays["in.feat_gen"]) == outputs["ndb_score"]
    assert official_ndb(data, data) == outputs["ndb_score_same"]
    expected = outputs["z_test_p1=.1/.02/0 n1=600 p2=.1/.05/0 n2=500"]
    assert proportions_differ([0.1, 0.02, 0], 600, [0.1, 0.05, 0], 500).tolist() == expected


def test_threshold_search(arrays, outputs):
    found = official_threshold_search(
        arrays["in.probs_gen"], np.random.RandomState(123)
    )  # the generator of the official data
    np.testing.assert_array_equal(found.tuning, arrays["mid.thr_val_indices"])
    np.testing.assert_allclose(found.pairs, outputs["threshold"]["pairs"], rtol=1e-12)
    np.testing.assert_allclose(found.scores, arrays["mid.thr_scores"], rtol=1e-6)
    assert found.selected == pytest.approx(outputs["threshold"]["upstream_selected"])
    assert found.best == pytest.approx(outputs["threshold"]["true_argmax"])
    others = sorted(set(range(500)) - set(found.tuning.tolist()))
    np.testing.assert_array_equal(found.kept, others[100:237])  # int(0.4 · 250) to int(0.95 · 250)


def test_the_state_of_the_generator_after_the_pairs_of_the_test_set(arrays):
    expected = np.random.RandomState(0)
    np.testing.assert_array_equal([expected.choice(500, size=2) for _ in range(10_000)], arrays["mid.mis_pairs"])
    assert state_after_modified_inception_score(500).randint(2**31) == expected.randint(2**31)


def test_the_global_generator_is_not_changed():
    probs = np.random.default_rng(0).dirichlet(np.ones(10), size=40)
    np.random.seed(5)
    expected = np.random.random()
    np.random.seed(5)
    official_inception_score(probs)
    official_modified_inception_score(probs)
    official_threshold_search(probs, state_after_modified_inception_score(40))
    assert np.random.random() == expected


def test_the_official_score_counts_rare_classes_like_frequent_ones():
    rare = np.full((1000, 10), 0.01 / 9)
    rare[:, 0] = 0.99
    rare[np.arange(1, 10) * 100] = np.eye(10)[1:] * 0.99 + 0.001
    assert inception_score(rare, splits=1)[0] < 1.1
    assert official_inception_score(rare) > 3  # nine rare classes count as much as the frequent one


def test_values_that_only_the_official_code_returns():
    collapsed = np.eye(3)[[0, 0, 0, 0]]
    assert np.isnan(official_inception_score(collapsed))
    assert official_modified_inception_score(np.eye(3)[[0, 1, 2, 0]]) == np.inf
    with pytest.raises(UserError, match="no window has an official Inception Score"):
        official_threshold_search(np.eye(3)[[0] * 20], np.random.RandomState(0))


def test_too_few_clips():
    with pytest.raises(UserError, match="needs at least 2, got 1"):
        official_inception_score(np.eye(3)[:1])
    with pytest.raises(UserError, match="at least 20 clips, got 3"):
        official_threshold_search(np.eye(3), np.random.RandomState(0))
