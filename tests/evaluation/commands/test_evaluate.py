"""Tests of the command ``sashimi-evaluate``."""

import json
import subprocess
import sys
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


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Write sixty clips of noise, named like the digits of three speakers."""
    folder = tmp_path / "recordings"
    folder.mkdir()
    random = np.random.default_rng(0)
    for digit in range(10):
        for speaker in ("ann", "bob", "eve"):
            for index in range(2):
                noise = 0.1 * random.standard_normal(4000)
                soundfile.write(folder / f"{digit}_{speaker}_{index}.wav", noise, 8000)
    return folder


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    folder = tmp_path / "samples"
    folder.mkdir()
    random = np.random.default_rng(1)
    record = []
    for number in range(20):
        name = f"{number:04d}.wav"
        soundfile.write(folder / name, 0.1 * random.standard_normal(4000), 8000)
        record.append({"file": name, "label": number % 10, "class_name": None})
    (folder / "samples.json").write_text(json.dumps({"samples": record}))
    return folder


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--reference", "nowhere"], "the data folder nowhere does not exist"),
        (["--hold-out", "index"], "--hold-out index: expected FIELD=VALUE"),
        (["--hold-out", "take=1"], "'take'"),
        (["--hold-out", "index=0", "--held-out", "samples"], "exclude each other"),
        (["--classifier", "nobody"], "there is no digit classifier nobody"),
        (["--features", "json"], "expected package.module:function"),
        (["--features", "json:nothing"], "has no attribute 'nothing'"),
        (["--features", "collections:OrderedDict"], "which lacks one of name, sample_rate"),
        (["--resamples", "1"], "--resamples is 1, expected at least 2"),
        (["--json", "recordings"], "recordings is a folder: give the name of a file"),
        (["--likelihood-window", "0.4", "0.05"], "needs the log-likelihood of every clip"),
        (["--protocol", "mine"], "invalid choice: 'mine'"),
    ],
)
def test_wrong_options_are_one_line_and_exit_code_2(samples, recordings, classifier, capsys, change, message):
    options = ["--reference", "recordings", "--pattern", PATTERN, "--classifier", classifier, "--resamples", "5"]
    assert main(["samples", *options, *change]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert not Path("evaluation.json").exists()


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
    with pytest.warns(UserWarning, match="going on without them"):
        assert run("samples", *options, "--skip-bad-files") == 0


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
