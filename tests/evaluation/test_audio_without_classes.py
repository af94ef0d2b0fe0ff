"""Tests of evaluations without classes, on the piano and the drums of the shared data and on made-up sounds."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sashimi_diffusion.data.decoding import decode_audio
from sashimi_diffusion.errors import UserError
from sashimi_evaluation.classifiers import load_classifier
from sashimi_evaluation.clips import open_clips
from sashimi_evaluation.commands.evaluate import main
from sashimi_evaluation.evaluation import EvaluatedSet, evaluate
from sashimi_evaluation.excerpts import Windows
from sashimi_evaluation.extraction import Settings, extract_features
from sashimi_evaluation.extractors import load_extractor
from sashimi_evaluation.metrics.intervals import Resampling
from sashimi_evaluation.report.record import json_report, text_table

FEW_DRAWS = Resampling(resamples=10)


def values(evaluated: EvaluatedSet) -> dict[str, float | None]:
    return {metric.key: metric.value for metric in evaluated.metrics}


def mu_law(samples: np.ndarray) -> np.ndarray:
    """Return samples quantized to five bits of a mu law."""
    bent = np.sign(samples) * np.log1p(255 * np.abs(samples)) / np.log(256)
    steps = np.round(15 * bent) / 15
    return np.sign(steps) * (256 ** np.abs(steps) - 1) / 255


def write_pieces(root: Path, files: list[Path], seconds: float, change) -> Path:
    """Write the beginning of each file, 20 seconds after its start if it is so long, changed by ``change``."""
    root.mkdir()
    for file in files:
        samples, rate, _ = decode_audio(file, 20 + seconds)
        samples = samples[20 * rate :] if len(samples) > 20 * rate else samples[: round(seconds * rate)]
        soundfile.write(root / f"{file.stem}.wav", np.clip(change(samples.astype(np.float64)), -1, 1), rate)
    return root


@pytest.mark.parametrize(
    ("instrument", "pattern", "seconds", "windows"),
    [("piano", "*.flac", 8.0, Windows(1.0)), ("drums", "[bdp]*.flac", 0.5, Windows(0.25))],
    ids=["piano", "drums"],
)
def test_generated_is_between_real_and_noise(
    shared_data: Path, tmp_path: Path, instrument: str, pattern: str, seconds: float, windows: Windows
):
    files = sorted((shared_data / instrument).glob(pattern))
    random = np.random.default_rng(0)

    def noise(samples: np.ndarray) -> np.ndarray:
        return np.sqrt(np.mean(np.square(samples))) * random.standard_normal(len(samples))

    write_pieces(tmp_path / "reference", files[::2], seconds, lambda samples: samples)
    real = write_pieces(tmp_path / "real", files[1::2], seconds, lambda samples: samples)
    generated = write_pieces(
        tmp_path / "generated", files[1::2], seconds, lambda samples: mu_law(samples) + 0.1 * noise(samples)
    )
    white = write_pieces(tmp_path / "noise", files[1::2], seconds, noise)
    settings = Settings(resampling=FEW_DRAWS, cache_dir=tmp_path / "cache", windows=windows)
    sets = [open_clips(folder) for folder in (real, generated, white)]
    extraction = extract_features(
        sets, open_clips(tmp_path / "reference"), None, None, load_extractor("embedding"), settings
    )
    near, middle, far = (values(each) for each in evaluate(extraction).sets)
    for key in ("fid", "kid", "kad"):
        assert near[key] < middle[key] < far[key], key
    assert near["coverage"] > middle["coverage"] > far["coverage"]
    assert near["spectrum_distance"] < middle["spectrum_distance"] < far["spectrum_distance"]


@pytest.fixture
def sounds(tmp_path: Path) -> Path:
    """Write three folders of six chords of three and a half seconds each, with a sample rate of 8 kHz."""
    random = np.random.default_rng(0)
    time = np.arange(round(3.5 * 8000)) / 8000
    for folder in ("reference", "samples", "others"):
        (tmp_path / folder).mkdir()
        for number in range(6):
            pitches = random.uniform(100, 600, 3)
            chord = sum(np.sin(2 * np.pi * pitch * time) * np.exp(-time * random.uniform(0.2, 1)) for pitch in pitches)
            chord = 0.1 * chord + 0.01 * random.standard_normal(len(time))
            soundfile.write(tmp_path / folder / f"chord{number}.wav", chord, 8000)
    return tmp_path


CLASS_METRICS = {"is", "is_splits", "mcs", "am", "accuracy", "confidence"}
NAMES = ["chord0", "chord1", "chord2", "chord3", "chord4", "chord5"]


def test_reports_without_classes(sounds: Path, monkeypatch, capsys):
    monkeypatch.chdir(sounds)
    options = [
        "samples",
        "--reference",
        "reference",
        "--held-out",
        "others",
        "--classifier",
        "none",
        "--resamples",
        "5",
    ]
    assert main([*options, "--window", "1", "--hop", "0.5", "--html", "page.html"]) == 0
    printed = capsys.readouterr().out
    assert "excerpts of 1 s every 0.5 s; the reference has 36 of 6 recordings" in printed
    assert "features: embedding; no classes" in printed
    assert re.search(r"^recordings +6 +6$", printed, re.MULTILINE)
    assert re.search(r"^excerpts +36 +36$", printed, re.MULTILINE)
    assert "FAD ↓" in printed
    assert "FID" not in printed
    assert "Inception" not in printed
    assert "they resample whole recordings, of which the set has 6 and the reference 6" in printed
    content = json.loads(Path("evaluation.json").read_text())
    assert content["classifier"] is None
    assert content["excerpts"] == {"window": 1, "hop": 0.5}
    assert content["features"]["name"] == "embedding"
    for part in content["sets"]:
        assert (part["clips"], part["files"]) == (36, 6)
        assert part["classes_heard"] is part["accuracy_per_class"] is part["confusion"] is None
        assert not CLASS_METRICS & part["figures"].keys()
        assert {"fid", "kid", "kad", "precision", "recall", "density", "coverage", "level"} <= part["figures"].keys()
    assert {"copies", "neighbour_ratio"} <= content["sets"][0]["figures"].keys()
    assert content["sets"][0]["figures"]["fid"]["title"] == "FAD"
    assert content["sets"][0]["figures"]["fid"]["difference"]["interval"]
    clips = content["sets"][0]["per_clip"]
    assert [clip["start"] for clip in clips[:7]] == [0, 0.5, 1, 1.5, 2, 2.5, 0]
    assert [clip["file"] for clip in clips[::6]] == [f"{name}.wav" for name in NAMES]
    assert {clip["label"] for clip in clips} == {clip["predicted"] for clip in clips} == {None}
    assert {clip["nearest_start"] for clip in clips} <= {0, 0.5, 1, 1.5, 2, 2.5}
    page = Path("page.html").read_text()
    assert page.count("<audio") == 2 * 2 * 12
    assert "chord0.wav at 0 s" in page
    assert "chord5.wav at 2.5 s" in page
    assert "samples: 36 excerpts of 6 recordings" in page
    for absent in ("Classifier", "classified as", 'id="class"', 'id="wrong"', 'href="#published"', 'href="#classes"'):
        assert absent not in page, absent
    assert 'id="method"' in page


def test_without_windows_each_file_is_one_clip(sounds: Path, monkeypatch, capsys):
    monkeypatch.chdir(sounds)
    options = ["samples", "--reference", "reference", "--resamples", "5"]
    assert main([*options, "--classifier", "none"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^clips +6$", printed, re.MULTILINE)
    assert "only the first second is used: 6 of 6 clips are longer" in printed
    content = json.loads(Path("evaluation.json").read_text())
    assert content["excerpts"] is None
    assert {clip["start"] for clip in content["sets"][0]["per_clip"]} == {0}
    assert main(options) == 0  # the bundled classifier takes the chords for digits
    assert "no clip has a class that a bundled classifier knows" in capsys.readouterr().out
    content = json.loads(Path("evaluation.json").read_text())
    assert "--classifier none leaves them out" in content["notes"][0]
    assert content["sets"][0]["figures"].keys() >= {"is", "mcs", "am"}
    assert content["sets"][0]["figures"]["fid"]["title"] == "FID"
    for file in sorted(Path("reference").iterdir()):
        file.rename(f"reference/{file.stem[-1]}_x.wav")
    assert main([*options, "--pattern", "{label}_{name}"]) == 0  # unconditional samples of known words
    assert "no clip has a class" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            ["--protocol", "sashimi-icml22"],
            "--protocol sashimi-icml22 has metrics of classes, but --classifier is none",
        ),
        (["--window", "0"], "--window is 0, expected a number of seconds from 0.1 to 60"),
        (["--hop", "1"], "--hop 1 needs excerpts: give their duration with --window SECONDS, too"),
        (["--window", "1", "--hop", "0"], "--hop is 0, expected a number of seconds from 0.01 to 3600"),
        (["--window", "4"], "--window 4 is longer than every recording of reference (the longest has 3.5 s)"),
        (["--window", "1", "--held-out", "others", "--prepare", "rate=8000,length=10"], "--window exclude each other"),
        (["--features", "vgish=x"], "did you mean 'vggish'?"),
        (["--features", ""], "expected package.module:function"),
        (["--features", "clap"], "the weights are missing: expected --features clap=FOLDER"),
        (["--features", "panns=nowhere"], "nowhere does not exist: expected the weights of panns"),
        (["--features", "vggish=samples/chord0.wav"], "no checkpoint that torch can read (it is an audio file)"),
    ],
)
def test_wrong_options_are_one_line(sounds: Path, monkeypatch, capsys, change, message):
    monkeypatch.chdir(sounds)
    assert main(["samples", "--reference", "reference", "--classifier", "none", "--resamples", "2", *change]) == 2
    captured = capsys.readouterr()
    # A bar of progress may come before the error.
    (error,) = (line for line in captured.err.splitlines() if line and "features of" not in line)
    assert error.startswith("error: ")
    assert message in error
    assert not Path("evaluation.json").exists()


def test_the_weights_are_not_overwritten(sounds: Path, monkeypatch, capsys):
    import torch

    from tests.evaluation.test_named_extractors import vggish_state

    monkeypatch.chdir(sounds)
    torch.save(vggish_state(), "vggish.pth")
    options = ["samples", "--reference", "reference", "--classifier", "none", "--features", "vggish=vggish.pth"]
    assert main([*options, "--json", "vggish.pth"]) == 2
    assert "is also the input vggish.pth" in capsys.readouterr().err
    assert main([*options, "--window", "1", "--resamples", "2"]) == 0
    content = json.loads(Path("evaluation.json").read_text())
    assert content["features"]["name"] == "vggish"
    assert content["features"]["dimensions"] == 7
    assert "FAD" in capsys.readouterr().out


class Level:
    """Feature extractor of one dimension that hears two seconds."""

    name, sample_rate, fingerprint, seconds = "level", 4000, "level-1", 2.0

    def features(self, audio, rate):
        assert audio.shape[1] == 8000
        return np.stack([audio.std(axis=1), audio.mean(axis=1)], axis=1)


def test_a_classifier_and_an_extractor_evaluate_the_same_excerpts(sounds: Path, classifier_folder: Path):
    classifier, clips = load_classifier(classifier_folder), open_clips(sounds / "samples")
    settings = Settings(resampling=FEW_DRAWS, windows=Windows(2.0, 0.5))
    extraction = extract_features([clips], open_clips(sounds / "reference"), None, classifier, Level(), settings)
    (evaluated,) = evaluate(extraction).sets
    outputs = evaluated.clip_features.outputs
    assert outputs["features"].shape == (24, 2)
    assert outputs["probabilities"].shape == (24, 10)
    first, rate = soundfile.read(clips.files[0])
    expected = [first[round(start * rate) :][: 2 * rate].std() for start in (0, 0.5, 1, 1.5)]
    np.testing.assert_allclose(outputs["features"][:4, 0], expected, rtol=0.05)
    own = classifier.classify(np.stack([first[4000:12000]]).astype(np.float32), rate)[1]
    np.testing.assert_allclose(outputs["probabilities"][1], own[0], atol=1e-3)
    assert "only the first second is used: 24 of 24 excerpts are longer" in evaluated.notes
    assert values(evaluated)["is"] is not None
    assert json_report(evaluate(extraction), "command")["sets"][0]["per_clip"][1]["predicted"] is not None
    alone = Settings(resampling=FEW_DRAWS)
    assert extract_features([clips], clips, None, None, Level(), alone).sets[0].outputs["features"].shape == (6, 2)


def test_intervals_resample_recordings(sounds: Path):
    """Excerpts of one recording are alike: more of them do not make the intervals narrower."""
    widths = []
    for windows in (Windows(3.5), Windows(0.5, 0.25)):
        settings = Settings(resampling=Resampling(resamples=100), windows=windows)
        reference, clips = open_clips(sounds / "reference"), open_clips(sounds / "samples")
        extraction = extract_features([clips], reference, None, None, load_extractor("embedding"), settings)
        (evaluated,) = evaluate(extraction).sets
        level = next(metric for metric in evaluated.metrics if metric.key == "level")
        widths.append(level.interval.high - level.interval.low)
        for metric in evaluated.metrics:
            if metric.interval is not None:
                low, high = metric.interval.low - 1e-12, metric.interval.high + 1e-12  # the bootstrap rounds
                assert low <= metric.value <= high, metric.key
    assert len(evaluated.clip_features) == 78
    assert widths[1] > 0.5 * widths[0]


def test_one_recording_has_no_intervals(sounds: Path):
    settings = Settings(resampling=FEW_DRAWS, windows=Windows(0.5))
    clips, reference = open_clips(sounds / "samples").select([0]), open_clips(sounds / "reference")
    extraction = extract_features([clips], reference, None, None, load_extractor("embedding"), settings)
    evaluation = evaluate(extraction)
    (evaluated,) = evaluation.sets
    assert len(evaluated.clip_features) == 7
    assert all(metric.interval is None for metric in evaluated.metrics)
    assert "no confidence intervals, because all excerpts are from one recording" in evaluated.notes
    assert "[" not in text_table(evaluation).partition("\n\n")[0]


def test_one_clip_has_only_the_intervals_of_its_shares(sounds: Path):
    clips, reference = open_clips(sounds / "samples").select([0]), open_clips(sounds / "reference")
    settings = Settings(resampling=FEW_DRAWS)
    extraction = extract_features([clips], reference, None, None, load_extractor("embedding"), settings)
    (evaluated,) = evaluate(extraction).sets
    intervals = {metric.key: metric.interval for metric in evaluated.metrics if metric.interval is not None}
    assert "level" not in intervals
    assert all(interval.high - interval.low > 0.5 for interval in intervals.values())
    assert "no confidence intervals of most metrics, because there is one clip" in evaluated.notes


def test_an_evaluation_needs_features(sounds: Path):
    clips = open_clips(sounds / "samples")
    with pytest.raises(UserError, match="needs features: give a classifier, an extractor, or both"):
        extract_features([clips], clips, None, None)
    with pytest.raises(UserError, match="the protocol sashimi-icml22 has class metrics"):
        extract_features([clips], clips, None, None, Level(), Settings(protocol="sashimi-icml22"))


def test_the_likelihood_window_keeps_whole_recordings(sounds: Path):
    clips = open_clips(sounds / "samples")
    clips.log_likelihoods[:] = [3, 1, 2, 6, 5, 4]
    settings = Settings(resampling=FEW_DRAWS, windows=Windows(1.0), window=(0.34, 0.16))
    extraction = extract_features([clips], clips, None, None, load_extractor("embedding"), settings)
    kept = extraction.sets[0]
    assert [file.stem for file in kept.whole().files] == ["chord0", "chord4", "chord5"]
    assert len(kept) == 9
