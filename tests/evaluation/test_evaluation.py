"""Tests of the evaluation of sets of clips: metrics, intervals, notes and reports."""

import json
from dataclasses import replace

import numpy as np
import pytest
import soundfile

from sashimi_diffusion.errors import UserError
from sashimi_evaluation.classifiers import load_classifier
from sashimi_evaluation.clips import open_clips
from sashimi_evaluation.evaluation import evaluate
from sashimi_evaluation.extraction import Settings, extract_features
from sashimi_evaluation.metrics import arrays
from sashimi_evaluation.metrics.frechet import frechet_metrics
from sashimi_evaluation.metrics.intervals import Interval, Resampling
from sashimi_evaluation.report.record import json_report, text_table

FEW_DRAWS = Settings(resampling=Resampling(resamples=20))


class Mean:
    """Feature extractor of two dimensions: mean and standard deviation of the waveform."""

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


def metrics_of(evaluated):
    return {metric.key: metric for metric in evaluated.metrics}


def test_every_metric_has_an_interval(folders, classifier):
    extraction = extract_features(
        [folders["samples"]], folders["reference"], folders["held out"], classifier, settings=FEW_DRAWS
    )
    samples, held_out = evaluate(extraction).sets
    metrics = metrics_of(samples)
    shares = ["precision", "recall", "coverage", "ndb", "jsd", "accuracy", "confidence", "silent", "clipped"]
    in_every_set = [*shares, "fid", "fid_infinity", "kid", "kad", "density", "is", "mcs", "am"]
    in_every_set += ["level", "noise_floor", "inner_floor", "word_seconds", "voiced", "spectrum_distance"]
    in_every_set += ["hnr_0_1", "hnr_1_2", "hnr_2_3", "hnr_3_4", "excess_3500_4000"]
    in_every_set += ["line_1000", "line_2000", "line_3000"]
    for key in (*shares, "copies"):
        assert metrics[key].interval.low >= 0, key
        assert metrics[key].interval.high <= 1, key
    assert metrics["silent"].interval.low == 0
    assert min(metrics[key].interval.low for key in ("fid", "density", "am")) >= 0
    assert min(metrics[key].interval.low for key in ("is", "mcs")) >= 1
    assert set(metrics) == {*in_every_set, "copies", "neighbour_ratio"}
    for key in metrics:
        assert metrics[key].interval.low <= metrics[key].value <= metrics[key].interval.high, key
    assert set(metrics_of(held_out)) == set(in_every_set)  # held-out clips have no baseline
    for key in metrics:
        difference = metrics[key].difference
        assert (difference is None) == (key not in in_every_set), key
        if difference is not None:
            assert difference.value == metrics[key].value - metrics_of(held_out)[key].value, key
            assert difference.interval.low <= difference.value <= difference.interval.high, key
    assert all(metric.difference is None for metric in held_out.metrics)
    assert held_out.real
    assert samples.histogram.sum() == 60
    assert samples.accuracy.confusion.sum() == 60


def test_the_distance_is_extrapolated_if_there_are_enough_clips(folders, classifier, tmp_path, write_digits):
    many = open_clips(write_digits(tmp_path / "many", 12, 4), "many")
    extraction = extract_features([many, folders["samples"]], folders["reference"], None, classifier, Mean(), FEW_DRAWS)
    both = [metrics_of(evaluated)["fid_infinity"] for evaluated in evaluate(extraction).sets]
    for metric, clips in zip(both, (120, 60), strict=True):
        assert f" at {clips}" in metric.note
        assert metric.value < 0.01
    few = extract_features([many.select(range(40))], folders["reference"], None, classifier, settings=FEW_DRAWS)
    assert "fid_infinity" not in metrics_of(evaluate(few).sets[0])  # too few clips for 32 dimensions


def test_the_interval_of_the_extrapolated_distance_has_the_width_of_its_spread():
    random = np.random.default_rng(0)
    limits, widths = [], []
    for _ in range(16):
        reference, features = random.standard_normal((300, 8)), random.standard_normal((300, 8)) + 0.3
        metrics = {metric.key: metric for metric in frechet_metrics(reference, features, Resampling(resamples=50))}
        limits.append(metrics["fid_infinity"].value)
        widths.append(metrics["fid_infinity"].interval.high - metrics["fid_infinity"].interval.low)
    assert 0.7 < np.mean(widths) / (2 * 1.96 * np.std(limits)) < 2


def test_clips_of_the_same_distribution_have_better_metrics_than_noise(folders, classifier, tmp_path, write_digits):
    noise = open_clips(write_digits(tmp_path / "noise", 6, 3, noise=1.0), "noise")
    extraction = extract_features(
        [folders["samples"], noise], folders["reference"], None, classifier, settings=FEW_DRAWS
    )
    near, far = (metrics_of(evaluated) for evaluated in evaluate(extraction).sets)
    assert near["fid"].value < far["fid"].value / 2
    assert near["kid"].value < far["kid"].value
    assert near["kad"].value < far["kad"].value
    assert near["coverage"].value > far["coverage"].value
    assert near["noise_floor"].value < far["noise_floor"].value - 10


def test_the_reference_against_itself(folders, classifier):
    reference = folders["reference"]
    (evaluated,) = evaluate(extract_features([reference], reference, None, classifier, settings=FEW_DRAWS)).sets
    metrics = metrics_of(evaluated)
    assert metrics["fid"].value == pytest.approx(0, abs=1e-9)
    assert metrics["ndb"].value == 0
    assert metrics["precision"].value == metrics["recall"].value == metrics["coverage"].value == 1
    assert "80 of 80 clips are also in the reference" in " ".join(evaluated.notes)
    assert np.array_equal(evaluated.neighbors[0], np.arange(80))


def test_an_extractor_changes_only_the_distances(folders, classifier):
    extraction = extract_features([folders["samples"]], folders["reference"], None, classifier, Mean(), FEW_DRAWS)
    (evaluated,) = evaluate(extraction).sets
    assert evaluated.clip_features.outputs["features"].shape == (60, 2)
    plain = evaluate(
        extract_features([folders["samples"]], folders["reference"], None, classifier, settings=FEW_DRAWS)
    ).sets[0]
    assert metrics_of(evaluated)["mcs"] == metrics_of(plain)["mcs"]
    assert metrics_of(evaluated)["fid"].value != metrics_of(plain)["fid"].value
    content = json_report(evaluate(extraction), "command")
    assert content["features"] == {"name": "mean", "fingerprint": "mean-1", "dimensions": 2}


def test_the_official_protocol_returns_the_official_metrics(folders, classifier):
    settings = Settings(protocol="sashimi-icml22")
    (evaluated,) = evaluate(
        extract_features([folders["samples"]], folders["reference"], None, classifier, settings=settings)
    ).sets
    assert list(metrics_of(evaluated)) == ["official_fid", "official_is", "official_mis", "official_am", "official_ndb"]


def test_the_likelihood_window_leaves_clips_out(folders, classifier):
    samples = folders["samples"]
    with pytest.raises(UserError, match=r"needs the log-likelihood of every clip"):
        extract_features([samples], folders["reference"], None, classifier, settings=Settings(window=(0.4, 0.05)))
    samples.log_likelihoods[:] = np.arange(60)
    settings = Settings(window=(0.4, 0.05), resampling=Resampling(resamples=20))
    (evaluated,) = evaluate(extract_features([samples], folders["reference"], None, classifier, settings=settings)).sets
    assert evaluated.clip_features.clips.log_likelihoods.tolist() == list(range(24, 57))
    assert any("likelihood window" in note for note in evaluated.notes)


def test_one_clip_has_the_metrics_defined_for_one_clip(folders, classifier):
    one = folders["samples"].select([0])
    (evaluated,) = evaluate(extract_features([one], folders["reference"], None, classifier, settings=FEW_DRAWS)).sets
    metrics = metrics_of(evaluated)
    assert metrics["fid"].value is None
    assert "at least two clips" in metrics["fid"].note
    assert metrics["is"].value == pytest.approx(1)
    assert metrics["accuracy"].value in (0, 1)


def test_fewer_clips_than_dimensions_are_marked_unreliable(folders, classifier):
    few = folders["samples"].select(range(20))
    (evaluated,) = evaluate(extract_features([few], folders["reference"], None, classifier, settings=FEW_DRAWS)).sets
    assert metrics_of(evaluated)["fid"].note == "unreliable: 20 clips for 32 feature dimensions"
    assert metrics_of(evaluated)["ndb"].value is None


def test_table_and_record_agree(folders, classifier):
    extraction = extract_features(
        [folders["samples"]], folders["reference"], folders["held out"], classifier, settings=FEW_DRAWS
    )
    evaluation = evaluate(extraction)
    text, content = text_table(evaluation), json_report(evaluation, "the command")
    first = content["sets"][0]
    assert f"{first['figures']['mcs']['value']:.4g}" in text
    assert text.splitlines()[0].split() == ["samples", "held-out", "recordings"] or "held out" in text.splitlines()[0]
    assert content["command"] == "the command"
    assert content["reference"]["clips"] == 80
    assert content["classifier"]["sha256"] == classifier.fingerprint
    assert sum(first["classes_heard"].values()) == first["clips"] == 60
    assert "resampled to 16000 Hz: 60 of 60 at 8000 Hz" in text
    difference = first["figures"]["mcs"]["difference"]
    assert f"{difference['value']:+.4g} [{difference['interval'][0]:.4g}, " in text
    assert "difference" not in content["sets"][1]["figures"]["mcs"]
    assert "minus held-out" in text.splitlines()[0]
    assert content["held_out"]["preparation"] == {"rate": None, "length": None, "rms": None}


def test_the_record_has_the_answers_about_every_clip(folders, classifier):
    samples = folders["samples"]
    soundfile.write(samples.files[7], np.zeros(4000), 8000)
    evaluation = evaluate(extract_features([samples], folders["reference"], None, classifier, settings=FEW_DRAWS))
    content = json_report(evaluation, "command")["sets"][0]
    clips = content["per_clip"]
    assert [clip["file"] for clip in clips] == [file.relative_to(samples.root).as_posix() for file in samples.files]
    assert [clip["label"] for clip in clips[::6]] == classifier.class_names
    right = sum(clip["label"] == clip["predicted"] for clip in clips)
    assert right / 60 == content["figures"]["accuracy"]["value"]
    confidence = np.mean([clip["label_probability"] for clip in clips])
    assert confidence == pytest.approx(content["figures"]["confidence"]["value"])
    assert np.mean([clip["level"] for clip in clips]) == pytest.approx(content["figures"]["level"]["value"])
    assert clips[0]["hnr"]["0-1 kHz"] > 5
    assert clips[0]["hnr"]["4-8 kHz"] is None  # JSON has no NaN
    assert clips[7]["hnr"]["0-1 kHz"] is clips[7]["voiced_share"] is None
    assert (folders["reference"].root / clips[0]["nearest"]).is_file()
    assert len(content["spectrum"]["hz"]) == len(content["spectrum"]["level"]) == 39
    assert content["spectrum"]["hz"][:2] == [100, 200]


def test_the_order_of_the_clips_does_not_matter(folders, classifier):
    samples = folders["samples"]
    shuffled = samples.select(np.random.default_rng(0).permutation(60))
    first, second = evaluate(
        extract_features([samples, shuffled], folders["reference"], None, classifier, settings=FEW_DRAWS)
    ).sets
    for key in ("fid", "kid", "kad", "precision", "recall", "coverage", "is", "mcs", "am", "accuracy"):
        assert metrics_of(first)[key].value == pytest.approx(metrics_of(second)[key].value, rel=1e-6), key


def test_arrays_are_validated_once(folders, classifier, monkeypatch):
    validated, matrix = [], arrays._matrix

    def counting(values, name, *rest, **options):
        validated.append(name)
        return matrix(values, name, *rest, **options)

    monkeypatch.setattr(arrays, "_matrix", counting)
    extraction = extract_features([folders["samples"]], folders["reference"], None, classifier, settings=FEW_DRAWS)
    names = [
        f"{what} of {name}" for name in ("reference", "samples") for what in ("the features", "the class probabilities")
    ]
    assert validated == names
    evaluate(extraction)
    assert validated == names


def test_networks_that_return_invalid_arrays_are_named(folders, classifier):
    class Growing(Mean):
        calls = 0

        def features(self, audio, rate):
            self.calls += 1
            return np.ones((len(audio), 2 if self.calls <= 3 else 4))  # three batches of the reference

    with pytest.raises(UserError, match="reference and those of samples have 2 and 4 columns: the extractor must"):
        extract_features([folders["samples"]], folders["reference"], None, classifier, Growing(), FEW_DRAWS)

    class Broken(Mean):
        fingerprint = "broken"

        def features(self, audio, rate):
            return np.full((len(audio), 2), np.nan)

    with pytest.raises(UserError, match=r"80 of 80 (.|\n)*0/0\.wav: the features of its audio are not finite"):
        extract_features([folders["samples"]], folders["reference"], None, classifier, Broken(), FEW_DRAWS)


class BrokenForQuietClips(Mean):
    """Divide by zero for clips that are silent."""

    fingerprint = "broken for quiet clips"

    def features(self, audio, rate):
        with np.errstate(invalid="ignore", divide="ignore"):
            return super().features(audio, rate) / audio.std(axis=1, keepdims=True)


def test_clips_without_finite_features_are_named_or_left_out(folders, classifier):
    file = folders["samples"].files[7]
    soundfile.write(file, np.zeros(4000), 8000)
    sets = [folders["samples"]], folders["reference"], None, classifier, BrokenForQuietClips()
    with pytest.raises(UserError, match=f"1 of 60 audio files .*{file.name}: the features of its audio are not finite"):
        extract_features(*sets, FEW_DRAWS)
    with pytest.warns(UserWarning, match="the features of its audio are not finite"):
        extraction = extract_features(*sets, replace(FEW_DRAWS, skip_bad_files=True))
    assert len(extraction.sets[0]) == 59
    assert file not in extraction.sets[0].clips.files
    assert all(len(values) == 59 for values in extraction.sets[0].outputs.values())


def test_an_extractor_that_fails_is_named(folders, classifier):
    results = {
        r"the feature extractor mean failed \(ZeroDivisionError": lambda audio: 1 / 0,
        r"the feature extractor mean failed \(TypeError": lambda audio: audio[:, :3].astype(object) * "a",
        r"returned the shape \(1, 3\): expected one row of features": lambda audio: audio[:1, :3],
        r"returned the shape \(\d+, 0\)": lambda audio: audio[:, :0],
        "the network returns features of the shapes": lambda audio: audio[:, : len(audio)],
    }

    class Failing(Mean):
        def __init__(self, fingerprint):
            self.fingerprint = fingerprint

        def features(self, audio, rate):
            return results[self.fingerprint](audio)

    for message in results:
        with pytest.raises(UserError, match=message):
            extract_features([folders["samples"]], folders["reference"], None, classifier, Failing(message), FEW_DRAWS)


def test_the_json_report_has_no_number_that_json_lacks(folders, classifier):
    extraction = extract_features([folders["samples"]], folders["reference"], None, classifier, settings=FEW_DRAWS)
    evaluation = evaluate(extraction)
    metrics = evaluation.sets[0].metrics
    metrics[0] = replace(metrics[0], value=float("nan"), interval=Interval(-np.inf, np.inf))
    classifier.accuracy = {"there": {"accuracy": float("nan")}}
    content = json_report(evaluation, "command")
    assert content["sets"][0]["figures"]["fid"] == {"title": "FID", "value": None, "interval": [None, None]} | {
        "note": metrics[0].note
    }
    assert content["classifier"]["accuracy"] == {"there": {"accuracy": None}}
    json.dumps(content, allow_nan=False)
    assert text_table(evaluation).splitlines()[2].split() == ["FID", "↓", "-"]
    assert text_table(evaluation, symbols=False).splitlines()[2].split() == ["FID", "(lower", "is", "better)", "-"]


def test_notes_name_samples_in_the_scale_of_integers(folders, classifier):
    for file in folders["samples"].files[:2]:
        samples, rate = soundfile.read(file)
        soundfile.write(file, samples * 2**15, rate, subtype="FLOAT")
    extraction = extract_features([folders["samples"]], folders["reference"], None, classifier, settings=FEW_DRAWS)
    notes = " ".join(evaluate(extraction).sets[0].notes)
    assert "2 of 60 clips have samples above 16 although full scale is 1: 16-bit integers" in notes
