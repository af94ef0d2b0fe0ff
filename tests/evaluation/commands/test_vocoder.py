"""Tests of ``sashimi-evaluate vocoder``."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sashimi_evaluation.commands import evaluate
from sashimi_evaluation.metrics import speech_quality

RATE = 8000


def voice(pitch: float, seconds: float = 0.6) -> np.ndarray:
    time = np.arange(round(seconds * RATE)) / RATE
    return 0.1 * sum(np.sin(2 * np.pi * number * pitch * time) / number for number in range(1, 12))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Return a folder of clips and one of recordings, of which the third has no clip."""
    copies, recordings = tmp_path / "copies", tmp_path / "recordings"
    (recordings / "deep").mkdir(parents=True)
    copies.mkdir()
    for index, (name, pitch) in enumerate({"a": 120.0, "deep/b": 180.0, "c": 100.0}.items()):
        recording = voice(pitch)
        soundfile.write(recordings / f"{name}.flac", recording, RATE)
        if name != "c":
            noise = np.random.default_rng(index).standard_normal(len(recording))
            soundfile.write(copies / f"{name.replace('/', '-')}.wav", recording + 0.003 * noise, RATE)
    return copies, recordings


def run(tmp_path: Path, *arguments: object) -> int:
    options = [] if "--json" in arguments else ["--json", tmp_path / "report.json"]
    return evaluate.main(["vocoder", *map(str, [*arguments, *options])])


def error(capsys: pytest.CaptureFixture) -> str:
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    return line.removeprefix("error: ")


def test_the_table_and_the_report(folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    copies, recordings = folders
    assert run(tmp_path, f"mine={copies}", f"same={recordings}", "--reference", recordings) == 0
    captured = capsys.readouterr()
    assert "note: mine has clips of 2 of 3 recordings" in captured.err
    lines = captured.out.splitlines()
    assert lines[0].split() == ["mine", "same"]
    assert lines[1].split() == ["pairs", "2", "3"]
    assert "Mel-cepstral distortion (dB) ↓" in captured.out or "(lower is better)" in captured.out
    made = json.loads((tmp_path / "report.json").read_text())
    mine, same = made["sets"]
    assert {name: figure["value"] for name, figure in same["figures"].items()} == {
        **{"stft": 0, "stft_convergence": 0, "stft_log_magnitude": 0, "mcd": 0, "f0_rmse": 0, "voicing_error": 0}
    }
    for name in ("stft", "mcd", "f0_rmse"):
        low, high = mine["figures"][name]["interval"]
        assert 0 <= low <= mine["figures"][name]["value"] <= high
        assert mine["figures"][name]["value"] > 0
    assert mine["figures"]["f0_rmse"]["value"] < 5
    assert [pair["name"] for pair in mine["per_pair"]] == ["a", "deep-b"]
    assert mine["per_pair"][0]["seconds"] == 0.6
    assert made["definitions"]["mcd"]["time_warping"] is False
    assert made["definitions"]["stft"]["resolutions"][0] == [512, 240, 50]
    assert made["command"].startswith("sashimi-evaluate vocoder mine=")


def test_a_single_pair_has_no_intervals(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    copies, recordings = folders
    (copies / "deep-b.wav").unlink()
    assert run(tmp_path, copies, "--reference", recordings) == 0
    assert "[" not in capsys.readouterr().out.partition("->")[0]
    (own,) = json.loads((tmp_path / "report.json").read_text())["sets"]
    assert own["figures"]["stft"]["value"] > 0
    assert all(figure["interval"] is None for figure in own["figures"].values())


def test_a_small_difference_in_length_and_another_rate(folders: tuple[Path, Path], tmp_path: Path) -> None:
    copies, recordings = folders
    samples = soundfile.read(copies / "a.wav")[0]
    soundfile.write(copies / "a.wav", np.pad(samples, (0, 300)), RATE)
    soundfile.write(recordings / "a.flac", np.repeat(soundfile.read(recordings / "a.flac")[0], 2), 2 * RATE)
    assert run(tmp_path, copies, "--reference", recordings) == 0
    (one,) = json.loads((tmp_path / "report.json").read_text())["sets"]
    assert (one["per_pair"][0]["sample_rate"], one["per_pair"][0]["seconds"]) == (RATE, 0.6)


def test_a_file_with_several_channels_is_said(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    copies, recordings = folders
    soundfile.write(copies / "a.wav", np.tile(soundfile.read(copies / "a.wav")[0][:, None], 2), RATE)
    assert run(tmp_path, copies, "--reference", recordings) == 0
    assert "mixed down to mono: 1 of 2 pairs have a file with several channels" in capsys.readouterr().err
    (one,) = json.loads((tmp_path / "report.json").read_text())["sets"]
    assert [pair["mixed"] for pair in one["per_pair"]] == [True, False]


def test_pesq_and_stoi_are_columns_of_their_own(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    copies, recordings = folders
    monkeypatch.setattr("sashimi_evaluation.vocoder.pesq", lambda *_: 3.0)
    monkeypatch.setattr("sashimi_evaluation.vocoder.stoi", lambda generated, *_: float("nan"))
    monkeypatch.setattr("sashimi_evaluation.commands.vocoder.require_package", lambda *_: None)
    monkeypatch.setattr("sashimi_evaluation.commands.vocoder.version", lambda name: "1.0")
    assert run(tmp_path, copies, "--reference", recordings, "--pesq", "--stoi") == 0
    out = capsys.readouterr().out
    assert "PESQ, narrow band" in out
    assert "copies: STOI: not defined for any pair" in out
    (one,) = json.loads((tmp_path / "report.json").read_text())["sets"]
    assert one["figures"]["pesq"]["value"] == 3.0
    assert one["figures"]["stoi"]["value"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("{c}",), "the following arguments are required: --reference"),
        (("{c}", "--reference", "{t}/none"), "the data folder {t}/none does not exist: expected a folder with the"),
        (("{c}", "--reference", "{r}/a.flac"), "the data folder {r}/a.flac is not a folder"),
        (("{c}", "--reference", "{t}/broken"), "cannot use {t}/broken/a.wav: unreadable (No such file or directory)"),
        (("{t}/none", "--reference", "{r}"), "none"),
        (("{r}", "--reference", "{c}"), "1 of 3 clips in {r} have no recording of the same name in {c}: c;"),
        (("{c}", "--reference", "{r}", "--resamples", "1"), "--resamples is 1, expected at least 2"),
        (("{c}", "--reference", "{r}", "--seed", "-1"), "--seed is -1"),
        (("{c}", "--reference", "{r}", "--json", "{c}/a.wav"), "is also the input"),
        (("{t}/long", "--reference", "{r}"), "has 2.00 s, {r}/a.flac has 0.60 s: expected a clip that was generated"),
        (("{t}/twice", "--reference", "{r}"), "a.flac and {t}/twice/a.wav have the same name"),
        (("{t}/slow", "--reference", "{r}"), "a rate of 1000 Hz is too low, expected at least 2000"),
    ],
)
def test_wrong_input(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture, arguments: tuple[str, ...], message: str
) -> None:
    copies, recordings = folders
    for name, seconds, rate in (("long", 2.0, RATE), ("twice", 0.6, RATE), ("slow", 0.6, 1000)):
        (tmp_path / name).mkdir()
        soundfile.write(tmp_path / name / "a.wav", voice(120.0, seconds)[: round(seconds * rate)], rate)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.wav").symlink_to(tmp_path / "gone.wav")
    soundfile.write(tmp_path / "twice" / "a.flac", voice(120.0), RATE)
    names = {"c": copies, "r": recordings, "t": tmp_path}
    assert run(tmp_path, *(argument.format(**names) for argument in arguments)) == 2
    assert message.format(**names) in error(capsys)
    assert not (tmp_path / "report.json").exists()


@pytest.mark.parametrize(("option", "package"), [("--pesq", "pesq"), ("--stoi", "pystoi")])
def test_a_missing_package_is_one_line(
    folders: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
    option: str,
    package: str,
) -> None:
    copies, recordings = folders
    monkeypatch.setattr(speech_quality, "find_spec", lambda name: None)
    assert run(tmp_path, copies, "--reference", recordings, option) == 2
    assert error(capsys).startswith(f"{option} needs the package {package}: pip install {package}")
