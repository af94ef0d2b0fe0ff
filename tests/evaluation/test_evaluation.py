import numpy as np
import pytest

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.classifiers import load_classifier
from sashimi_evaluation.clips import open_clips
from sashimi_evaluation.evaluation import Settings, evaluate, hear
from sashimi_evaluation.metrics.figures import Resampling, distance_figures
from sashimi_evaluation.report.record import record, table

FEW_DRAWS = Settings(resampling=Resampling(resamples=20))


class Mean:
    """An extractor of two dimensions: mean and deviation of the waveform."""

    name, sample_rate, fingerprint = "mean", 4000, "mean-1"

    def features(self, audio, rate):
        assert rate == 4000
        assert audio.shape[1] == 4000
        return np.stack([audio.mean(axis=1), audio.std(axis=1)], axis=1)


@pytest.fixture
def classifier(classifier_folder):
    return load_classifier(classifier_folder)


@pytest.fixture
def folders(tmp_path, write_digits):
    return {
        name: open_clips(write_digits(tmp_path / name, count, seed), name)
        for name, count, seed in (("reference", 8, 0), ("held out", 6, 1), ("samples", 6, 2))
    }


def figures_of(scored):
    return {figure.key: figure for figure in scored.figures}


def test_every_figure_is_there_with_its_interval(folders, classifier):
    heard = hear([folders["samples"]], folders["reference"], folders["held out"], classifier, settings=FEW_DRAWS)
    samples, held_out = evaluate(heard).sets
    figures = figures_of(samples)
    shares = ["precision", "recall", "coverage", "ndb", "jsd", "accuracy", "confidence", "silent", "clipped"]
    everywhere = [*shares, "fid", "fid_infinity", "kid", "kad", "density", "is", "mcs", "am"]
    everywhere += ["level", "noise_floor", "inner_floor"]
    for key in (*shares, "copies"):
        assert figures[key].interval.low >= 0, key
        assert figures[key].interval.high <= 1, key
    assert figures["silent"].interval.low == 0
    assert min(figures[key].interval.low for key in ("fid", "density", "am")) >= 0
    assert min(figures[key].interval.low for key in ("is", "mcs")) >= 1
    assert set(figures) == {*everywhere, "copies", "neighbour_ratio"}
    for key in figures:
        assert figures[key].interval.low <= figures[key].value <= figures[key].interval.high, key
    assert set(figures_of(held_out)) == set(everywhere)  # nothing to compare the held-out clips with
    assert held_out.real
    assert samples.histogram.sum() == 60
    assert samples.accuracy.confusion.sum() == 60


def test_the_distance_is_extrapolated_where_that_means_something(folders, classifier, tmp_path, write_digits):
    many = open_clips(write_digits(tmp_path / "many", 12, 4), "many")
    heard = hear([many, folders["samples"]], folders["reference"], None, classifier, Mean(), FEW_DRAWS)
    both = [figures_of(scored)["fid_infinity"] for scored in evaluate(heard).sets]
    for figure, clips in zip(both, (120, 60), strict=True):
        assert f" at {clips}" in figure.note
        assert figure.value < 0.01
    few = hear([many.chosen(range(40))], folders["reference"], None, classifier, settings=FEW_DRAWS)
    assert "fid_infinity" not in figures_of(evaluate(few).sets[0])  # 32 dimensions: too few clips to grow from


def test_the_interval_of_the_limit_is_as_wide_as_other_clips_would_scatter():
    random = np.random.default_rng(0)
    limits, widths = [], []
    for _ in range(16):
        reference, features = random.standard_normal((300, 8)), random.standard_normal((300, 8)) + 0.3
        figures = {figure.key: figure for figure in distance_figures(reference, features, Resampling(resamples=50))}
        limits.append(figures["fid_infinity"].value)
        widths.append(figures["fid_infinity"].interval.high - figures["fid_infinity"].interval.low)
    assert 0.7 < np.mean(widths) / (2 * 1.96 * np.std(limits)) < 2


def test_one_distribution_scores_better_than_another(folders, classifier, tmp_path, write_digits):
    noise = open_clips(write_digits(tmp_path / "noise", 6, 3, noise=1.0), "noise")
    heard = hear([folders["samples"], noise], folders["reference"], None, classifier, settings=FEW_DRAWS)
    near, far = (figures_of(scored) for scored in evaluate(heard).sets)
    assert near["fid"].value < far["fid"].value / 2
    assert near["kid"].value < far["kid"].value
    assert near["kad"].value < far["kad"].value
    assert near["coverage"].value > far["coverage"].value
    assert near["noise_floor"].value < far["noise_floor"].value - 10


def test_the_reference_against_itself(folders, classifier):
    reference = folders["reference"]
    (scored,) = evaluate(hear([reference], reference, None, classifier, settings=FEW_DRAWS)).sets
    figures = figures_of(scored)
    assert figures["fid"].value == pytest.approx(0, abs=1e-9)
    assert figures["ndb"].value == 0
    assert figures["precision"].value == figures["recall"].value == figures["coverage"].value == 1
    assert "80 of 80 clips are files of the reference too" in " ".join(scored.notes)
    assert np.array_equal(scored.neighbours[0], np.arange(80))


def test_an_extractor_measures_the_distances_only(folders, classifier):
    heard = hear([folders["samples"]], folders["reference"], None, classifier, Mean(), FEW_DRAWS)
    (scored,) = evaluate(heard).sets
    assert scored.measured.outputs["features"].shape == (60, 2)
    plain = evaluate(hear([folders["samples"]], folders["reference"], None, classifier, settings=FEW_DRAWS)).sets[0]
    assert figures_of(scored)["mcs"] == figures_of(plain)["mcs"]
    assert figures_of(scored)["fid"].value != figures_of(plain)["fid"].value
    content = record(evaluate(heard), "command")
    assert content["features"] == {"name": "mean", "fingerprint": "mean-1", "dimensions": 2}


def test_the_official_protocol_has_the_official_figures(folders, classifier):
    settings = Settings(protocol="sashimi-icml22")
    (scored,) = evaluate(hear([folders["samples"]], folders["reference"], None, classifier, settings=settings)).sets
    assert list(figures_of(scored)) == ["official_fid", "official_is", "official_mis", "official_am", "official_ndb"]


def test_the_likelihood_window_leaves_clips_out(folders, classifier):
    samples = folders["samples"]
    with pytest.raises(UserError, match=r"needs the log-likelihood of every clip"):
        hear([samples], folders["reference"], None, classifier, settings=Settings(window=(0.4, 0.05)))
    samples.log_likelihoods[:] = np.arange(60)
    settings = Settings(window=(0.4, 0.05), resampling=Resampling(resamples=20))
    (scored,) = evaluate(hear([samples], folders["reference"], None, classifier, settings=settings)).sets
    assert scored.measured.clips.log_likelihoods.tolist() == list(range(24, 57))
    assert any("likelihood window" in note for note in scored.notes)


def test_one_clip_has_the_figures_that_one_clip_can_have(folders, classifier):
    one = folders["samples"].chosen([0])
    (scored,) = evaluate(hear([one], folders["reference"], None, classifier, settings=FEW_DRAWS)).sets
    figures = figures_of(scored)
    assert figures["fid"].value is None
    assert "at least two clips" in figures["fid"].note
    assert figures["is"].value == pytest.approx(1)
    assert figures["accuracy"].value in (0, 1)


def test_fewer_clips_than_dimensions_are_marked(folders, classifier):
    few = folders["samples"].chosen(range(20))
    (scored,) = evaluate(hear([few], folders["reference"], None, classifier, settings=FEW_DRAWS)).sets
    assert figures_of(scored)["fid"].note == "unreliable: 20 clips for 32 feature dimensions"
    assert figures_of(scored)["ndb"].value is None


def test_table_and_record_tell_the_same(folders, classifier):
    heard = hear([folders["samples"]], folders["reference"], folders["held out"], classifier, settings=FEW_DRAWS)
    evaluation = evaluate(heard)
    text, content = table(evaluation), record(evaluation, "the command")
    first = content["sets"][0]
    assert f"{first['figures']['mcs']['value']:.4g}" in text
    assert text.splitlines()[0].split() == ["samples", "held-out", "recordings"] or "held out" in text.splitlines()[0]
    assert content["command"] == "the command"
    assert content["reference"]["clips"] == 80
    assert content["classifier"]["sha256"] == classifier.fingerprint
    assert sum(first["classes_heard"].values()) == first["clips"] == 60
    assert "resampled to 16000 Hz: 60 of 60 at 8000 Hz" in text


def test_the_clips_may_come_in_any_order(folders, classifier):
    samples = folders["samples"]
    shuffled = samples.chosen(np.random.default_rng(0).permutation(60))
    first, second = evaluate(hear([samples, shuffled], folders["reference"], None, classifier, settings=FEW_DRAWS)).sets
    for key in ("fid", "kid", "kad", "precision", "recall", "coverage", "is", "mcs", "am", "accuracy"):
        assert figures_of(first)[key].value == pytest.approx(figures_of(second)[key].value, rel=1e-6), key
