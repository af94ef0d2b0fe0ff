"""Tests of the command ``sashimi-evaluate``."""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from sashimi_evaluation.classifiers import SmallClassifier
from sashimi_evaluation.commands.evaluate import main

PATTERN = "{label}_{speaker}_{index}"


@pytest.fixture(autouse=True)
def cache_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SASHIMI_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.manual_seed(0)
    model = SmallClassifier(channels=(4, 4, 8, 16))
    model.classifier.weight.data *= 100
    folder = tmp_path_factory.mktemp("classifier")
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write sixty clips of noise, named like the digits of three speakers, and twenty samples with their record."""
    root = tmp_path_factory.mktemp("made")
    folder = root / "recordings"
    folder.mkdir()
    random = np.random.default_rng(0)
    for digit in range(10):
        for speaker in ("ann", "bob", "eve"):
            for index in range(2):
                noise = 0.1 * random.standard_normal(4000)
                soundfile.write(folder / f"{digit}_{speaker}_{index}.wav", noise, 8000)
    folder = root / "samples"
    folder.mkdir()
    random = np.random.default_rng(1)
    record = []
    for number in range(20):
        name = f"{number:04d}.wav"
        soundfile.write(folder / name, 0.1 * random.standard_normal(4000), 8000)
        record.append({"file": name, "label": number % 10, "class_name": None})
    (folder / "samples.json").write_text(json.dumps({"samples": record}))
    return root


@pytest.fixture
def recordings(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "recordings", tmp_path / "recordings"))


@pytest.fixture
def samples(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made / "samples", tmp_path / "samples"))


def run(*arguments: str) -> int:
    return main([*arguments, "--resamples", "10"])


def test_table_record_and_page(samples, recordings, classifier, capsys):
    options = ["--reference", str(recordings), "--pattern", PATTERN, "--hold-out", "index=1"]
    options += ["--classifier", classifier]
    assert run(str(samples), *options, "--json", "out/record.json", "--html", "out/page.html") == 0
    printed = capsys.readouterr().out
    assert "Label accuracy" in printed
    assert "held-out recordings" in printed
    content = json.loads(Path("out/record.json").read_text())
    assert [part["clips"] for part in content["sets"]] == [20, 30]
    assert content["reference"]["clips"] == 30
    assert content["command"].startswith("sashimi-evaluate ")
    page = Path("out/page.html").read_text()
    assert page.count("<audio") > 20
    assert "Label accuracy" in page


NINE = ["zero", "one", "five", "eight", "down", "go", "left", "right", "up"]


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """Write two sets of recordings of nine words in the layout of Speech Commands, and samples with their record."""
    random = np.random.default_rng(0)
    record = []
    for folder in ("words", "others", "generated"):
        for number in range(36):
            word = NINE[number % 9]
            name = f"{number:04d}-{word}.wav" if folder == "generated" else f"{word}/{number}_nohash_0.wav"
            (tmp_path / folder / name).parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(tmp_path / folder / name, 0.1 * random.standard_normal(8000), 16000)
            if folder == "generated":
                record.append({"file": name, "label": number % 9, "class_name": word})
    (tmp_path / "generated" / "samples.json").write_text(json.dumps({"samples": record}))
    return tmp_path / "words"


def test_the_classifier_follows_the_classes_of_the_samples(words, capsys):
    assert run("generated", "--reference", str(words), "--held-out", "others", "--html", "page.html") == 0
    content = json.loads(Path("evaluation.json").read_text())
    assert content["classifier"]["name"] == "words-small"
    for evaluated in content["sets"]:
        assert list(evaluated["classes_heard"]) == list(evaluated["accuracy_per_class"]) == NINE
        assert np.shape(evaluated["confusion"]) == (9, 9)
        assert {"accuracy", "is", "mcs", "am", "fid"} <= evaluated["figures"].keys()
    assert "right" in Path("page.html").read_text()
    assert run("generated", "--reference", str(words), "--classifier", "words-small") == 0
    again = json.loads(Path("evaluation.json").read_text())
    first, second = (found["sets"][0]["figures"]["accuracy"] for found in (content, again))
    assert first["difference"]["value"] == 0  # only the first evaluation has held-out recordings
    assert second == {name: value for name, value in first.items() if name != "difference"}


def test_a_classifier_that_does_not_know_the_classes_is_refused(words, classifier, capsys):
    assert run("generated", "--reference", str(words), "--classifier", "digits-small") == 2
    error = capsys.readouterr().err.strip()
    assert "\n" not in error
    assert "the clips of generated have the classes down, go, left, right, up, which the classifier digits" in error
    assert "choose another --classifier, or leave it out" in error


def test_several_sets_side_by_side(samples, recordings, classifier, capsys):
    options = ["--reference", str(recordings), "--classifier", classifier]
    assert run(f"ours={samples}", f"theirs={samples}", *options) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["ours", "theirs"]
    content = json.loads(Path("evaluation.json").read_text())
    assert content["sets"][0]["figures"] == content["sets"][1]["figures"]


def test_several_processes_give_the_results_of_one(samples, recordings, classifier, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    options = [str(samples), "--reference", str(recordings), "--classifier", classifier, "--resamples", "10"]
    command = [*launch, "-m", "sashimi_evaluation.commands.evaluate", *options, "--cache-dir", str(tmp_path / "two")]
    done = subprocess.run([*command, "--json", "two.json"], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.count("-> two.json") == 1
    assert main([*options, "--cache-dir", str(tmp_path / "one"), "--json", "one.json"]) == 0
    one, two = (json.loads(Path(name).read_text()) for name in ("one.json", "two.json"))
    for content in (one, two):
        content.pop("command")
    assert one == two


def test_held_out_recordings_are_prepared_like_the_training_data(samples, recordings, classifier, capsys):
    record = json.loads((samples / "samples.json").read_text())
    record |= {"sample_rate": 8000, "samples_per_clip": 2000, "pipeline": {"name": "sashimi-digits"}}
    (samples / "samples.json").write_text(json.dumps(record))
    options = ["--reference", str(recordings), "--pattern", PATTERN, "--hold-out", "index=1"]
    options += ["--classifier", classifier, "--lines", "500", "1500.5"]
    assert run(str(samples), *options) == 0
    content = json.loads(Path("evaluation.json").read_text())
    generated, real = content["sets"]
    assert content["held_out"]["preparation"] == {"rate": 8000, "length": 2000, "rms": 0.04}
    assert {clip["seconds"] for clip in real["per_clip"]} == {0.25}
    assert real["figures"]["level"]["value"] == pytest.approx(20 * np.log10(0.04), abs=0.2)
    assert {clip["seconds"] for clip in generated["per_clip"]} == {0.5}
    assert generated["figures"]["level"]["value"] == pytest.approx(-20, abs=0.2)
    note = "prepared like the training data of the generated clips: resampled to 8000 Hz, scaled to a root mean square"
    assert note in capsys.readouterr().out
    assert {"line_500", "line_1500.5"} <= set(real["figures"])
    assert run(str(samples), *options, "--prepare", "none") == 0
    content = json.loads(Path("evaluation.json").read_text())
    assert content["held_out"]["preparation"] == {"rate": None, "length": None, "rms": None}
    assert {clip["seconds"] for clip in content["sets"][1]["per_clip"]} == {0.5}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--prepare", "rms=0.1"], "--prepare is for held-out recordings: give --hold-out or --held-out"),
        (["--held-out", "recordings", "--prepare", "rms=loud"], "--prepare rms=loud: expected none, or some of"),
        (["--lines", "0"], "--lines has 0, expected frequencies in Hz above 0"),
        (["--lines", "nan"], "--lines has nan, expected frequencies in Hz above 0"),
        (["--reference", "nowhere"], "the data folder nowhere does not exist"),
        (["--hold-out", "index"], "--hold-out index: expected FIELD=VALUE"),
        (["--hold-out", "take=1"], "'take'"),
        (["--hold-out", "index=0", "--held-out", "samples"], "exclude each other"),
        (["--classifier", "nobody"], "there is no word classifier nobody"),
        (["--features", "json"], "expected package.module:function"),
        (["--features", "json:nothing"], "json is no module with feature extractors"),
        (["--features", "os:system"], "os is no module with feature extractors"),
        (["--features", "sys:exit"], "sys is no module with feature extractors"),
        (["--features", "numpy:nothing"], "has no attribute 'nothing'"),
        (["--resamples", "1"], "--resamples is 1, expected at least 2"),
        (["--resamples", "1000000000000"], "--resamples is 1000000000000, expected at least 2 and at most 10000"),
        (["--resamples", "1e12"], "invalid int value: '1e12'"),
        (["--seed", "-1"], "--seed is -1, expected a whole number from 0 to 4294967295"),
        (["--seed", str(2**32)], "expected a whole number from 0 to 4294967295"),
        (["--json", "recordings"], "--json recordings is a folder: expected the name of a file"),
        (["--json", "x", "--html", "./x"], "--html x is also --json: choose another file"),
        (["--json", "new/x", "--html", "new/../new/x"], "is also --json: choose another file"),
        (["--html", "samples/0003.wav"], "--html samples/0003.wav is also the input samples/0003.wav"),
        (["--json", "link"], "--json link is also the input samples/0003.wav"),
        (["--json", "samples/samples.json"], "is also the input samples/samples.json"),
        (["--json", "recordings/0_ann_0.wav"], "is also the input recordings/0_ann_0.wav"),
        (["--where", "index=1", "--json", "recordings/0_ann_0.wav"], "is also the input recordings/0_ann_0.wav"),
        (["--json", "samples/0003.wav/x"], "samples/0003.wav is not a folder"),
        (["--json", "n" * 300], "File name too long"),
        (["--likelihood-window", "nan", "0"], "needs the log-likelihood of every clip"),
        (["--likelihood-window", "0.4", "0.05"], "needs the log-likelihood of every clip"),
        (["--protocol", "mine"], "invalid choice: 'mine'"),
    ],
)
def test_wrong_options_are_one_line_and_exit_code_2(samples, recordings, classifier, capsys, change, message):
    Path("link").symlink_to("samples/0003.wav")
    before = {path: path.read_bytes() for path in [*samples.iterdir(), *recordings.iterdir()]}
    options = ["--reference", "recordings", "--pattern", PATTERN, "--classifier", classifier, "--resamples", "5"]
    assert main(["samples", *options, *change]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert {path: path.read_bytes() for path in [*samples.iterdir(), *recordings.iterdir()]} == before
    assert sorted(path.name for path in Path().iterdir() if path.name != "cache") == ["link", "recordings", "samples"]


def test_files_that_the_evaluation_leaves_out_are_not_overwritten(samples, recordings, classifier, capsys):
    options = ["samples", "--reference", "recordings", "--classifier", classifier, "--pattern", PATTERN]
    for name in ("notes.wav", "testing_list.txt"):
        Path("recordings", name).write_text("mine")
        assert main([*options, "--skip-bad-files", "--html", f"recordings/{name}"]) == 2
        assert f"is also the input recordings/{name}" in capsys.readouterr().err
        assert Path("recordings", name).read_text() == "mine"


def test_the_module_of_the_features_is_not_overwritten(samples, recordings, classifier, capsys, monkeypatch):
    monkeypatch.syspath_prepend(".")
    code = """
class Extractor:
    name, fingerprint, sample_rate = "mine", "1", 8000

    def features(self, audio, rate):
        return audio[:, :4]
"""
    Path("my_features.py").write_text(code)
    options = ["samples", "--reference", "recordings", "--classifier", classifier]
    assert main([*options, "--features", "my_features:Extractor", "--json", "my_features.py"]) == 2
    assert "is also the input" in capsys.readouterr().err
    assert Path("my_features.py").read_text() == code


def test_no_file_of_the_classifier_is_overwritten(samples, recordings, classifier, capsys):
    options = ["samples", "--reference", "recordings", "--classifier", classifier]
    assert main([*options, "--json", f"{classifier}/config.json"]) == 2
    assert "is also the input" in capsys.readouterr().err


@pytest.fixture
def evaluated(samples, recordings, classifier) -> list[str]:
    """Return the arguments of an evaluation."""
    return ["samples", "--reference", "recordings", "--classifier", classifier, "--resamples", "2"]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_a_terminal_without_arrows(evaluated, monkeypatch, encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(evaluated) == 0
    stream.seek(0)
    printed = stream.read()
    assert re.search(r"^FID \(lower is better\)  ", printed, re.MULTILINE)
    assert "\\u" not in printed
    assert json.loads(Path("evaluation.json").read_text())["sets"]


def test_the_reports_are_written_before_a_pipe_breaks(evaluated, monkeypatch):
    reader, writer = os.pipe()
    os.close(reader)  # as head does after its last line
    with open(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        assert main([*evaluated, "--html", "page.html"]) == 0
    assert json.loads(Path("evaluation.json").read_text())["sets"]
    assert Path("page.html").read_text().endswith("</html>\n")


def test_reports_are_written_to_devices_and_through_links(evaluated):
    os.mkfifo("pipe")
    Path("shelf").mkdir()
    Path("page.html").symlink_to("shelf/page.html")
    received = []
    reader = threading.Thread(target=lambda: received.append(Path("pipe").read_bytes()))
    reader.start()
    assert main([*evaluated, "--json", "pipe", "--html", "page.html"]) == 0
    reader.join()
    assert json.loads(received[0])["sets"]
    assert Path("pipe").is_fifo()
    assert Path("page.html").is_symlink()
    assert Path("shelf/page.html").read_text().endswith("</html>\n")
    assert main([*evaluated, "--json", "/dev/null", "--html", "/dev/null"]) == 0
    assert Path("/dev/null").is_char_device()
    left = sorted(path.name for path in Path().iterdir() if path.name != "cache")
    assert left == ["page.html", "pipe", "recordings", "samples", "shelf"]


def test_a_page_without_matplotlib_is_refused_before_the_work(evaluated, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main([*evaluated, "--html", "page.html"]) == 2
    assert "the plots of a report need matplotlib" in capsys.readouterr().err
    assert not Path("cache").exists()
    assert main(evaluated) == 0


def test_clips_at_unusual_rates_have_a_page(evaluated, samples):
    time = np.arange(1_000_000) / 1e6
    soundfile.write(samples / "0003.wav", 0.5 * np.sin(2 * np.pi * 440 * time), 1_000_000)
    soundfile.write(samples / "0004.wav", 0.5 * np.sin(2 * np.pi * 440 * time[::250]), 4000)
    assert main([*evaluated, "--html", "page.html"]) == 0
    rates = set()
    for uri in re.findall('src="data:audio/flac;base64,([^"]*)"', Path("page.html").read_text()):
        rates.add(soundfile.info(io.BytesIO(base64.b64decode(uri))).samplerate)
    assert rates == {8000, 48000}


def damage(path: Path, kind: str) -> None:
    if kind == "loud":
        soundfile.write(path, np.full(4000, 1e19), 8000, subtype="FLOAT")
    elif kind == "faint":
        soundfile.write(path, np.full(4000, 1e-40), 8000, subtype="DOUBLE")
    elif kind == "rate":
        soundfile.write(path, np.full(4000, 0.1), 50)
    elif kind == "total":  # a FLAC file that states 2^36 - 1 samples
        soundfile.write(path.with_suffix(".flac"), np.zeros(4000), 8000)
        content = bytearray(path.with_suffix(".flac").read_bytes())
        content[21] |= 15
        content[22:26] = b"\xff" * 4
        path.unlink()
        path.with_suffix(".flac").write_bytes(content)
    else:
        path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("loud", "0003.wav: samples up to 1e+19"),
        ("faint", "0003.wav: no sample above"),
        ("rate", "0003.wav: impossible sample rate (50 Hz, expected 100 Hz to 1,000,000 Hz)"),
        ("total", "0003.flac: cut short"),
        ("cut", "0003.wav: cut short"),
    ],
)
def test_bad_clips_are_named_or_skipped(evaluated, samples, capsys, kind, reason):
    damage(samples / "0003.wav", kind)
    assert main(evaluated) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert main([*evaluated, "--skip-bad-files"]) == 0
    warning = capsys.readouterr().err
    assert reason in warning
    assert "going on without them" in warning
    assert json.loads(Path("evaluation.json").read_text())["sets"][0]["clips"] == 19


def test_only_the_beginning_of_a_long_file_is_read(evaluated, samples, tmp_path):
    random = np.random.default_rng(0)
    soundfile.write(tmp_path / "long.flac", 0.1 * random.standard_normal(60 * 8000), 8000)
    content = bytearray((tmp_path / "long.flac").read_bytes())
    content[len(content) // 2] ^= 255  # after thirty seconds
    (samples / "0003.wav").unlink()
    (samples / "0003.flac").write_bytes(content)
    assert main(evaluated) == 0
    (part,) = json.loads(Path("evaluation.json").read_text())["sets"]
    assert "only the first second is used: 1 of 20 clips are longer" in part["notes"]


def test_names_that_are_no_text(evaluated, samples, capsys):
    name = os.fsdecode(b"t\xe9st\x1b[31m.wav")
    try:
        (samples / "0003.wav").rename(samples / name)
    except OSError:
        pytest.skip("the file system has only names in UTF-8")
    name = os.fsdecode(b"s\xe9t\x1b")
    assert main([f"{name}=samples", *evaluated[1:], "--html", "page.html"]) == 0
    printed = capsys.readouterr().out
    assert r"s\udce9t\x1b" in printed
    assert r"(t\udce9st\x1b[31m.wav)" in printed
    assert "\x1b" not in printed
    assert json.loads(Path("evaluation.json").read_bytes())["sets"][0]["name"] == name
    assert Path("page.html").read_text().endswith("</html>\n")


def test_notes_of_folders_are_in_the_reports(evaluated, samples, capsys):
    (samples / "0003.wav").rename(samples / "new.wav")
    assert main([*evaluated, "--sample-pattern", "{name}", "--html", "page.html"]) == 0
    note = "samples.json names clips that are missing: 1 of 20 (0003.wav)"
    assert f"samples: {note}" in capsys.readouterr().out
    assert note in json.loads(Path("evaluation.json").read_text())["sets"][0]["notes"]
    assert note in Path("page.html").read_text()


def test_folders_that_cannot_be_evaluated(samples, recordings, classifier, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    options = ["--reference", "recordings", "--classifier", classifier]
    assert run("empty", *options) == 2
    assert "no audio in empty" in capsys.readouterr().err
    assert run("samples", "samples", *options) == 2
    assert "two sets are called 'samples'" in capsys.readouterr().err
    soundfile.write(samples / "bad.wav", np.full(100, np.nan), 8000, subtype="FLOAT")
    assert run("samples", *options) == 2
    assert "bad.wav: non-finite samples" in capsys.readouterr().err
    assert run("samples", *options, "--skip-bad-files") == 0
    assert "going on without them" in capsys.readouterr().err
    assert json.loads(Path("evaluation.json").read_text())["sets"][0]["clips"] == 20


def test_listening_test_end_to_end(samples, recordings, capsys, tmp_path):
    make = ["listening-test", "make", "ours=samples", "real=recordings", "--out", "test", "--clips", "3"]
    assert main([*make, "--pattern", "{speaker}--{label}"]) == 2  # the pattern does not match the recordings
    assert "not of the form" in capsys.readouterr().err
    assert not Path("test").exists()
    assert main([*make, "--pattern", PATTERN]) == 0  # the samples do not match it either, but samples.json lists them
    assert Path("test/index.html").is_file()
    assert "which identifies the clips" in capsys.readouterr().out
    assert main(["listening-test", "score", "nothing.json", "nothing.csv"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert main([*make[:-3], ".", *make[-2:], "--pattern", PATTERN]) == 2
    assert "already exists and has other files" in capsys.readouterr().err
    (samples / "0003.wav").unlink()
    (samples / "0004.wav").write_bytes(b"no sound")
    make[-1] = "19"
    make[-3] = "second"
    assert main([*make, "--pattern", PATTERN, "--skip-bad-files"]) == 2
    captured = capsys.readouterr().err
    assert "1 of 19 audio files in samples cannot be used: 0004.wav: not audio" in captured
    assert "note: ours: samples.json names clips that are missing: 1 of 20 (0003.wav)" in captured
    assert "'ours' has 18 clips, too few for 19 per method" in captured


def test_the_table_of_a_listening_test_has_no_nan(capsys, tmp_path):
    clips = {"clip-001": {"method": "s\x1bt", "file": "a", "label": 3}}
    key = {
        "test": "t1",
        "seed": 0,
        "ratings": ["quality", "diversity"],
        "clips": clips,
        "batches": {"batch-1": "s\x1bt"},
    }
    Path("key.json").write_text(json.dumps(key))
    columns = "test,rater,item,quality,intelligibility,transcription,diversity,seconds,plays,finished\n"
    Path("a.csv").write_text(f"{columns}t1,ann,clip-001,4,,,,1,1,\nt1,ann,batch-1,,,,3,1,1,\n")
    assert main(["listening-test", "score", "key.json", "a.csv"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "test t1, 1 raters",
        "        quality   diversity",
        r"s\x1bt  4.00 n=1  3.00 n=1",
        "agreement (kappa): quality -, diversity -",
    ]
